"""The application: loaded models in, HTTP out."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.health import health_router
from pixelgate_common.service import build_app

from caption_service.captioner import Captioner
from caption_service.catalogue import model_set
from caption_service.loading import Model, load_all
from caption_service.routes import caption_router
from caption_service.settings import Settings

SERVICE = "caption-service"


def create_app(settings: Settings, *, models: Sequence[Model] | None = None) -> FastAPI:
    """Return the application that serves `models`, or those that `settings` name, the first loaded here and now.

    Loading comes before listening: a model that gives wrong answers must not be reachable for a moment. Raises
    `ModelProblem` when a model cannot be served.
    """
    captioner = Captioner(load_all(settings) if models is None else models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with captioner:
            app.state.captioner = captioner
            # What is alive now stays alive: the collector need not look at it again with every request.
            gc.collect()
            gc.freeze()
            yield

    return build_app(
        service=SERVICE,
        description="Pictures to sentences. An inner service: it knows no other service and no store.",
        settings=settings,
        lifespan=lifespan,
        routers=[
            caption_router(
                "given" if models is not None else model_set(settings),
                ByteBudget(settings.max_in_flight_bytes),
                settings.max_request_bytes,
            ),
            health_router({"models": captioner.check}),
        ],
        body_limit=lambda scope: settings.max_request_bytes,
    )
