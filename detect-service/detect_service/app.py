"""The application: loaded models in, HTTP out."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.health import health_router
from pixelgate_common.service import build_app

from detect_service.cutouts import CutoutMaker
from detect_service.objects import ObjectFinder
from detect_service.routes import Parts, detect_router
from detect_service.served import Models, Shelf
from detect_service.settings import Settings
from detect_service.workbench import Workbench

SERVICE = "detect-service"


def create_app(settings: Settings, *, models: Models | None = None) -> FastAPI:
    """Return the application that serves `models`, or those that `settings` name, loaded here and now.

    Loading comes before listening: a model that gives wrong answers must not be reachable for a moment. Raises
    `ModelProblem` when a model cannot be served.
    """
    shelf = Shelf(settings)
    begun = shelf.begin() if models is None else models

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            workbench = Workbench(settings.thread_count, settings.max_open_pixels, settings.decode_limits)
            workbench.open()
            stack.callback(workbench.close)
            objects = await stack.enter_async_context(ObjectFinder(begun.detectors, workbench, settings))
            cutouts = await stack.enter_async_context(
                CutoutMaker(begun.mattes, workbench, settings, look_up=shelf.matte)
            )
            app.state.parts = Parts(objects=objects, cutouts=cutouts, workbench=workbench, set=begun.set)
            # What is alive now stays alive: the collector need not look at it again with every request.
            gc.collect()
            gc.freeze()
            yield

    app: FastAPI

    async def check() -> list[dict[str, str]]:
        parts: Parts = app.state.parts
        parts.objects.check()
        parts.cutouts.check()
        models = parts.objects.models()[:1] + parts.cutouts.models()[:1]
        return [about.model_dump(include={"slot", "model", "fingerprint", "precision", "state"}) for about in models]

    app = build_app(
        service=SERVICE,
        description="Pictures to objects and to cutouts. An inner service: it knows no other service and no store.",
        settings=settings,
        lifespan=lifespan,
        routers=[
            detect_router(ByteBudget(settings.max_in_flight_bytes), settings.max_request_bytes),
            health_router({"models": check}),
        ],
        body_limit=lambda scope: settings.max_request_bytes,
    )
    return app
