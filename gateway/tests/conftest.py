"""A gateway over stand-ins for the inner services, in one process and with no network."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from gateway.app import create_app
from gateway.settings import GatewaySettings
from gateway.testing.embed import FakeEmbed
from gateway.testing.inner import Inner
from gateway.testing.storage import FakeStorage
from PIL import Image
from pixelgate_common.fetch import GuardedFetcher


@dataclass
class Running:
    """A gateway that runs, and a client of it."""

    app: FastAPI
    client: httpx.AsyncClient
    inner: Inner

    @property
    def storage(self) -> FakeStorage:
        return self.inner.storage

    @property
    def embed(self) -> FakeEmbed:
        return self.inner.embed


Start = Callable[..., Any]


@asynccontextmanager
async def started(inner: Inner | None = None, *, authenticator: Any = None, **settings: Any) -> AsyncIterator[Running]:
    inner = inner or Inner()

    async def no_names(host: str, port: int) -> list[Any]:
        return [ip_address("127.0.0.1")] if host.endswith("localhost") else []

    wanted = GatewaySettings(**{"upload_retry_s": 2.0, "retry_s": 0.3, **settings})
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(http) for name, http in inner.clients().items()}
        fetcher = await stack.enter_async_context(GuardedFetcher(wanted.fetch_limits, resolver=no_names))
        app = create_app(wanted, **clients, fetcher=fetcher, authenticator=authenticator)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield Running(app, client, inner)


@pytest.fixture
def inner() -> Inner:
    """Return stand-ins for the inner services."""
    return Inner()


@pytest.fixture
def start() -> Start:
    """Return what starts a gateway with settings of the test's own."""
    return started


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with started() as running:
        yield running


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """Return what makes a real JPEG: the seed decides its colours."""

    def make(seed: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(buffer, "JPEG")
        return buffer.getvalue()

    return make


@pytest.fixture
def scene() -> Callable[..., bytes]:
    """Return what makes a PNG with one box (x, y, width, height) of one colour on black."""

    def make(
        color: str = "#ff0000", box: tuple[int, int, int, int] = (16, 12, 32, 24), size: tuple[int, int] = (64, 48)
    ) -> bytes:
        picture = Image.new("RGB", size)
        picture.paste(color, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    return make
