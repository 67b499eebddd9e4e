"""How large a body each route takes, and how many requests of a kind are served at one time.

Both are decided from the request's head, before a byte of its body is read: a request that waits for its turn holds a
connection and nothing else, because its body stays in the sender's hands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pixelgate_common.errors import Overloaded, problem_response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.settings import MB, GatewaySettings

_FORM_OVERHEAD_BYTES = MB
"""What a multipart body of one picture may have beside the picture: boundaries, headers, form fields."""
_NO_BODY_BYTES = 64 * 1024
_SEARCHES = frozenset({"/v1/search", "/v1/search/by-image", "/v1/embeddings"})
_ANALYSES = frozenset({"/v1/caption", "/v1/objects", "/v1/palette", "/v1/cutout", "/v1/blend", "/v1/collage"})
_RENDERINGS = ("/cutout", "/annotated")


def body_limit(settings: GatewaySettings) -> Callable[[Scope], int]:
    """Return the function that gives the largest body, in bytes, that a request may have."""

    def limit_for(scope: Scope) -> int:
        if scope["method"] not in ("POST", "PATCH", "PUT"):
            return _NO_BODY_BYTES
        multipart = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/")
        match scope["path"].rstrip("/"):
            case "/v1/images" if multipart:
                return settings.max_body_mb * MB
            case "/v1/search/by-image":
                return settings.max_upload_bytes + _FORM_OVERHEAD_BYTES
            case "/v1/caption" | "/v1/objects" | "/v1/palette" | "/v1/cutout" if multipart:
                return settings.max_upload_bytes + _FORM_OVERHEAD_BYTES
            case "/v1/blend" if multipart:
                return 3 * settings.max_upload_bytes + _FORM_OVERHEAD_BYTES
            case "/v1/search" | "/v1/embeddings" | "/v1/collage":
                return settings.max_json_mb * MB
            case _:
                return MB

    return limit_for


class Gate:
    """Lets `running` requests through at one time, makes `waiting` more wait, and refuses the rest."""

    def __init__(self, name: str, *, running: int, waiting: int, timeout_s: float) -> None:
        """`timeout_s` is the longest wait for a turn."""
        self.name = name
        self._places = asyncio.Semaphore(running)
        self._max_waiting = waiting
        self._waiting = 0
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a place; raises `Overloaded` when too many wait already, or the wait takes too long."""
        if self._places.locked():
            if self._waiting >= self._max_waiting:
                raise Overloaded(f"Too many requests ({self.name}) are waiting already.", retry_after_s=2.0)
            self._waiting += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._places.acquire()
            except TimeoutError as error:
                raise Overloaded(f"The request ({self.name}) did not get its turn in time.") from error
            finally:
                self._waiting -= 1
        else:
            await self._places.acquire()
        try:
            yield
        finally:
            self._places.release()


class Admission:
    """Passes each request through the gate of its kind before its body is read."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        """Guard `app` with one gate for uploads, for searches, for analyses, and for everything else."""
        self.app = app
        wait_s = settings.admission_timeout_s
        self.uploads = Gate(
            "uploads", running=settings.uploads_running, waiting=settings.uploads_waiting, timeout_s=wait_s
        )
        self.interactive = Gate(
            "searches", running=settings.interactive_running, waiting=settings.interactive_waiting, timeout_s=wait_s
        )
        # Apart from searches, because a caption takes a hundred times as long as a search.
        self.analyses = Gate(
            "analyses", running=settings.analyses_running, waiting=settings.analyses_waiting, timeout_s=wait_s
        )
        self.reads = Gate("reads", running=settings.reads_running, waiting=settings.reads_waiting, timeout_s=wait_s)

    def gate_for(self, scope: Scope) -> Gate | None:
        """Return the request's gate; None for what is bounded elsewhere (events) or must always answer (health)."""
        path = scope["path"].rstrip("/")
        if not path.startswith("/v1/") or path == "/v1/events":
            return None
        if path == "/v1/images" and scope["method"] == "POST":
            return self.uploads
        if path in _SEARCHES:
            return self.interactive
        if path in _ANALYSES or (path.startswith("/v1/images/") and path.endswith(_RENDERINGS)):
            return self.analyses
        return self.reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 503 with `Retry-After`."""
        gate = self.gate_for(scope) if scope["type"] == "http" else None
        if gate is None:
            await self.app(scope, receive, send)
            return
        admitted = False
        try:
            async with gate.turn():
                admitted = True
                await self.app(scope, receive, send)
        except Overloaded as error:
            if admitted:
                raise
            await problem_response(error, scope["path"])(scope, receive, send)
