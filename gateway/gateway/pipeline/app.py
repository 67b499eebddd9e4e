"""The pipeline's application: the stages' workers as its life, health and metrics as its face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from pixelgate_common.errors import Unavailable
from pixelgate_common.health import Check, health_router
from pixelgate_common.service import build_app

from gateway.clients.embed import EmbedClient
from gateway.clients.inner import open_http
from gateway.clients.storage import StorageClient
from gateway.pipeline.settings import PipelineSettings
from gateway.pipeline.stages import Stage, stages
from gateway.pipeline.worker import StageWorker


def create_app(
    settings: PipelineSettings,
    *,
    storage_http: httpx.AsyncClient | None = None,
    embed_http: httpx.AsyncClient | None = None,
    table: Callable[[EmbedClient], tuple[Stage, ...]] = stages,
) -> FastAPI:
    """Return the application whose lifespan works the stages of `table` off, and then closes the HTTP clients."""
    to_storage = storage_http or open_http(
        settings.storage_url, settings, read_timeout_s=settings.storage_timeout_s, connections=64
    )
    to_embed = embed_http or open_http(
        settings.embed_url, settings, read_timeout_s=settings.call_timeout_s, connections=64
    )
    storage = StorageClient(to_storage, token=settings.service_token)
    embed = EmbedClient(to_embed, token=settings.service_token)
    workers = {stage.name: StageWorker(stage, storage, settings) for stage in table(embed)}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with to_storage, to_embed:
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

        return check

    return build_app(
        service="pipeline",
        description="Works the analysis stages off. Serves nothing but its health and metrics.",
        settings=settings,
        lifespan=lifespan,
        routers=[health_router({name: check_of(worker) for name, worker in workers.items()})],
        body_limit=lambda scope: 64 * 1024,
    )
