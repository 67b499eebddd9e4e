"""The stand-ins of all inner services with the ways to them, and a pipeline over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from gateway.pipeline.app import create_app
from gateway.pipeline.settings import PipelineSettings
from gateway.testing.caption import FakeCaption
from gateway.testing.color import FakeColor
from gateway.testing.detect import FakeDetect
from gateway.testing.embed import FakeEmbed
from gateway.testing.line import Line, http_over
from gateway.testing.storage import FakeStorage

_FAST: dict[str, Any] = {
    "idle_min_s": 0.01,
    "idle_max_s": 0.02,
    "backoff_min_s": 0.01,
    "backoff_max_s": 0.05,
    "models_ttl_s": 0.2,
    "lease_s": 5,
    "slow_lease_s": 5,
    "stand_back_s": 0.05,
    "stop_grace_s": 0.5,
}


@dataclass
class Inner:
    """The stand-ins and the ways to them; a test may put another way in a way's place."""

    storage: FakeStorage = field(default_factory=FakeStorage)
    embed: FakeEmbed = field(default_factory=FakeEmbed)
    caption: FakeCaption = field(default_factory=FakeCaption)
    detect: FakeDetect = field(default_factory=FakeDetect)
    color: FakeColor = field(default_factory=FakeColor)

    def __post_init__(self) -> None:
        """Lay the ways."""
        self.to_storage, self.to_embed = Line(self.storage.app()), Line(self.embed.app())
        self.to_caption, self.to_detect = Line(self.caption.app()), Line(self.detect.app())
        self.to_color = Line(self.color.app())

    def clients(self) -> dict[str, Any]:
        """Return an HTTP client for each service, named as `create_app` takes them."""
        names = ("storage", "embed", "caption", "detect", "color")
        return {f"{name}_http": http_over(getattr(self, f"to_{name}")) for name in names}

    def settled(self, stage: str = "clip") -> bool:
        """Return whether a stage is done with all pictures, one way or the other."""
        return set(self.storage.states(stage).values()) <= {"done", "failed"}

    def all_settled(self) -> bool:
        """Return whether every stage is."""
        return all(self.settled(stage) for stage in self.storage.stage_names)


@asynccontextmanager
async def pipeline_over(inner: Inner, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run a quick pipeline for the length of the block, and yield a client of its health."""
    app = create_app(PipelineSettings(**{**_FAST, **settings}), **inner.clients())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pipeline") as client,
    ):
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
