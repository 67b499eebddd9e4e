"""The pipeline's application: the stages' workers as its life, health and metrics as its face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from pixelgate_common.contracts.storage import SPACES
from pixelgate_common.errors import Unavailable
from pixelgate_common.health import Check, health_router
from pixelgate_common.service import build_app

from gateway.clients.caption import CaptionClient
from gateway.clients.color import ColorClient
from gateway.clients.detect import DetectClient
from gateway.clients.embed import EmbedClient
from gateway.clients.inner import open_http
from gateway.clients.storage import StorageClient
from gateway.pipeline.precedence import Precedence, StagesOn
from gateway.pipeline.settings import PipelineSettings
from gateway.pipeline.stages import Services, Stage, stages
from gateway.pipeline.worker import StageWorker


def create_app(
    settings: PipelineSettings,
    *,
    storage_http: httpx.AsyncClient | None = None,
    embed_http: httpx.AsyncClient | None = None,
    caption_http: httpx.AsyncClient | None = None,
    detect_http: httpx.AsyncClient | None = None,
    color_http: httpx.AsyncClient | None = None,
    table: Callable[[Services], tuple[Stage, ...]] = stages,
) -> FastAPI:
    """Return the application whose lifespan works the stages of `table` off, and then closes the HTTP clients."""
    to_storage = storage_http or open_http(
        settings.storage_url, settings, read_timeout_s=settings.storage_timeout_s, connections=64
    )

    def compute(http: httpx.AsyncClient | None, url: object) -> httpx.AsyncClient:
        # Each call to analyse has its own timeout; this one is for the questions beside it.
        return http or open_http(url, settings, read_timeout_s=settings.lease_s, connections=64)

    to_embed = compute(embed_http, settings.embed_url)
    to_caption = compute(caption_http, settings.caption_url)
    to_detect = compute(detect_http, settings.detect_url)
    to_color = compute(color_http, settings.color_url)
    token = settings.service_token
    storage = StorageClient(to_storage, token=token)
    services = Services(
        embed=EmbedClient(to_embed, token=token),
        caption=CaptionClient(to_caption, token=token),
        detect=DetectClient(to_detect, token=token),
        color=ColorClient(to_color, token=token),
    )
    precedence = Precedence(settings.stand_back_s)
    stages_on = StagesOn(storage, settings.models_ttl_s)
    workers = {
        stage.name: StageWorker(stage, storage, settings, precedence=precedence, stages_on=stages_on)
        for stage in table(services)
    }

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with to_storage, to_embed, to_caption, to_detect, to_color:
            running = [asyncio.create_task(worker.run(), name=name) for name, worker in workers.items()]
            try:
                yield
            finally:
                for worker in workers.values():
                    worker.stop()
                _, late = await asyncio.wait(running, timeout=settings.stop_grace_s)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late)

    def check_of(worker: StageWorker) -> Check:
        async def check() -> Any:
            if worker.breaker.reason is not None:
                raise Unavailable(worker.breaker.reason)
            if not worker.breaker.proven:
                raise Unavailable("It has not looked for work yet.")
            return "off" if worker.off else None

        return check

    # Pictures are found by their vectors; the other stages only add to them, and their services may be away.
    optional = [name for name in workers if name not in SPACES]
    checks: dict[str, Check] = {name: check_of(worker) for name, worker in workers.items()}
    return build_app(
        service="pipeline",
        description="Works the analysis stages off. Serves nothing but its health and metrics.",
        settings=settings,
        lifespan=lifespan,
        routers=[health_router(checks, optional=optional)],
        body_limit=lambda scope: 64 * 1024,
    )
