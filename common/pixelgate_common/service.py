"""How every service's application is put together, so that each `app.py` says only what is its own."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.types import Scope

from pixelgate_common import __version__
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import install_error_handlers
from pixelgate_common.logs import configure_logs
from pixelgate_common.metrics import metrics_router
from pixelgate_common.middleware import BodyCap, RequestContext, ServiceToken
from pixelgate_common.settings import ServiceSettings

_NOT_STARTED = 3
"""The exit status of a service that could not start (uvicorn's own)."""
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def build_app(
    *,
    service: str,
    description: str,
    settings: ServiceSettings,
    lifespan: Lifespan,
    routers: Sequence[APIRouter],
    body_limit: Callable[[Scope], int],
) -> FastAPI:
    """Return the application of an inner service: its routers, problem details, metrics, token and body cap."""
    app = FastAPI(
        title=f"Pixelgate {service}",
        description=description,
        version=__version__,
        lifespan=lifespan,
        responses={422: {"model": Problem, "description": "The request is not valid"}},
    )
    for router in (*routers, metrics_router()):
        app.include_router(router)
    install_error_handlers(app)
    # Added last runs first: the id is known to every later refusal, and the token is checked before any body.
    app.add_middleware(BodyCap, limit_for=body_limit)
    if settings.service_token is not None:
        app.add_middleware(ServiceToken, token=settings.service_token.get_secret_value())
    app.add_middleware(RequestContext, service=service)
    return app


def serve(
    app: FastAPI, settings: ServiceSettings, service: str, *, before_stop: Callable[[], None] | None = None
) -> None:
    """Serve `app` until SIGTERM or SIGINT, finishing the requests under way.

    `before_stop` is called when the stop begins, to end the answers that would go on for ever (event streams).
    """
    configure_logs(service, settings.log_level, settings.log_style)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        # The sockets' own queue holds the burst; admission is decided by each service's bounded queues.
        backlog=512,
    )
    server = _Server(config, before_stop)
    # uvicorn raises SIGINT again when it has stopped.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(_NOT_STARTED)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, before_stop: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._before_stop = before_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._before_stop is not None:
            self._before_stop()
        await super().shutdown(sockets)
