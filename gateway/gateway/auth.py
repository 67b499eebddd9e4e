"""Who asks: the check that every request passes before a byte of its body is read.

There are no keys yet, so `OpenAuthenticator` lets everybody in; an authenticator that knows keys takes its place in
`create_app` and nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pixelgate_common.errors import PixelgateError, problem_response
from pixelgate_common.middleware import OPEN_PATHS
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Permission = Literal["read", "write", "admin"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from, and what it may do."""

    name: str
    permissions: frozenset[Permission]


class Authenticator(Protocol):
    """Tells who asks, from the request's head alone."""

    async def authenticate(self, method: str, path: str, headers: Headers) -> Caller:
        """Return the caller. Raises `Unauthorized` (or any other `PixelgateError`) to refuse the request."""
        ...


class OpenAuthenticator:
    """Lets everybody do everything: for a gateway that listens on loopback only."""

    async def authenticate(self, method: str, path: str, headers: Headers) -> Caller:
        """Return the one caller that there is."""
        return Caller("anybody", frozenset({"read", "write", "admin"}))


class KeyCheck:
    """Asks the authenticator, and puts the caller into the request's state; health and metrics stay open."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        """Guard `app` with `authenticator`."""
        self.app, self.authenticator = app, authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                caller = await self.authenticator.authenticate(scope["method"], scope["path"], Headers(scope=scope))
            except PixelgateError as error:
                await problem_response(error, scope["path"])(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)
