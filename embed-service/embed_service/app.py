"""The application: loaded models in, HTTP out."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.health import health_router
from pixelgate_common.inference.resident import Resident
from pixelgate_common.service import build_app
from starlette.types import Scope

from embed_service.catalogue import set_in_use
from embed_service.embedder import Embedder
from embed_service.loading import Model, load_all
from embed_service.routes import embed_router
from embed_service.settings import Settings

SERVICE = "embed-service"
_TEXTS_BODY_BYTES = 4 * 1024 * 1024  # 256 texts of 2,000 characters of up to 4 bytes, escaped


def create_app(settings: Settings, *, models: Mapping[str, Sequence[Resident[Model]]] | None = None) -> FastAPI:
    """Return the application that serves `models`, or those that `settings` name, loaded here and now.

    Loading comes before listening: a model that gives wrong answers must not be reachable for a moment. Raises
    `ModelProblem` when a model cannot be served.
    """
    model_set = set_in_use(settings) if models is None else settings.models
    embedder = Embedder(load_all(settings) if models is None else models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with embedder:
            app.state.embedder = embedder
            # What is alive now stays alive: the collector need not look at it again with every request.
            gc.collect()
            gc.freeze()
            yield

    def body_limit(scope: Scope) -> int:
        return settings.max_request_bytes if scope["path"] == "/v1/embed/images" else _TEXTS_BODY_BYTES

    return build_app(
        service=SERVICE,
        description="Pictures and texts to vectors. An inner service: it knows no other service and no store.",
        settings=settings,
        lifespan=lifespan,
        routers=[
            embed_router(model_set, ByteBudget(settings.max_in_flight_bytes), settings.max_request_bytes),
            health_router({"models": embedder.check}),
        ],
        body_limit=body_limit,
    )
