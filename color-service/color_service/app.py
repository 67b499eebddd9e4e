"""The application: a few threads for pixels, HTTP around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.health import health_router
from pixelgate_common.service import build_app
from starlette.types import Scope

from color_service.jobs import Jobs
from color_service.routes import color_router
from color_service.settings import Settings

SERVICE = "color-service"
_COLORS_BODY_BYTES = 64 * 1024
_RANK_BODY_BYTES = 16 * 1024 * 1024  # 10,000 palettes of 8 colours with all their digits


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it has no model to load and knows no other service."""
    jobs = Jobs(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with jobs:
            app.state.jobs = jobs
            yield

    def body_limit(scope: Scope) -> int:
        match scope["path"]:
            case "/v1/palettes" | "/v1/blend" | "/v1/collage":
                return settings.max_request_bytes
            case "/v1/rank":
                return min(_RANK_BODY_BYTES, settings.max_request_bytes)
            case _:
                return _COLORS_BODY_BYTES

    return build_app(
        service=SERVICE,
        description="Pixels without weights. An inner service: it knows no other service and no store.",
        settings=settings,
        lifespan=lifespan,
        routers=[
            color_router(settings, ByteBudget(settings.max_in_flight_bytes)),
            health_router({"jobs": jobs.check}),
        ],
        body_limit=body_limit,
    )
