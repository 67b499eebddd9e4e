"""ASGI middleware that runs before any body is read: request id and access line, service token, body cap."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixelgate_common.errors import BodyTooLarge, Unauthorized, problem_response
from pixelgate_common.logs import REQUEST_ID_HEADER, begin_request
from pixelgate_common.metrics import REQUEST_SECONDS, REQUESTS

SERVICE_TOKEN_HEADER = "X-Pixelgate-Service-Token"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
log = structlog.get_logger("access")


class RequestContext:
    """Gives each request its id, and writes one line and two metrics when it has been answered."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        """Serve `app` as `service`."""
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = begin_request(Headers(scope=scope).get(REQUEST_ID_HEADER))
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            took_s = time.perf_counter() - started
            # The route's template, not the path: a metric per image id would never stop growing.
            route = getattr(scope.get("route"), "path", "unmatched")
            REQUESTS.labels(self.service, scope["method"], route, str(status)).inc()
            REQUEST_SECONDS.labels(self.service, scope["method"], route).observe(took_s)
            if scope["path"] not in OPEN_PATHS:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    took_ms=round(took_s * 1000, 1),
                )


class ServiceToken:
    """Lets only callers in who know the token that the services share; health and metrics stay open."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        """Guard `app` with `token`."""
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).get(SERVICE_TOKEN_HEADER, "").encode()
            if not secrets.compare_digest(given, self.token):
                error = Unauthorized(f"This service answers other Pixelgate services only ({SERVICE_TOKEN_HEADER}).")
                await problem_response(error, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyCap:
    """Refuses bodies over a limit: by their declared length before the first byte, else as soon as it is passed."""

    def __init__(self, app: ASGIApp, limit_for: Callable[[Scope], int]) -> None:
        """Guard `app`; `limit_for(scope)` is the largest body, in bytes, that the request may have."""
        self.app, self.limit_for = app, limit_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit_for(scope)
        error = BodyTooLarge(f"The body may have at most {limit:,} bytes.")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await problem_response(error, scope["path"])(scope, receive, send)
            return
        taken, passed, started = 0, False, False

        async def counted_receive() -> Message:
            nonlocal taken, passed
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:
                    passed = True
                    raise error
            return message

        async def guarded_send(message: Message) -> None:
            # Frameworks turn what is raised while they read a body into errors of their own; the answer stays 413.
            nonlocal started
            if passed and not started:
                return
            started = True
            await send(message)

        try:
            await self.app(scope, counted_receive, guarded_send)
        except BodyTooLarge:
            if not passed:
                raise
        if passed and not started:
            await problem_response(error, scope["path"])(scope, receive, send)
