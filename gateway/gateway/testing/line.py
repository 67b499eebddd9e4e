"""The way to an inner service, which tests can cut."""

from __future__ import annotations

import httpx
from fastapi import FastAPI


class Line(httpx.AsyncBaseTransport):
    """The way to a service, which can be cut: each error in `faults` is raised for one request, before or after it.

    `faults` holds pairs of an error and whether the request is still served before the answer gets lost.
    """

    def __init__(self, app: FastAPI) -> None:
        """Lead to `app`."""
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.faults: list[tuple[httpx.TransportError, bool]] = []
        self.down = False
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on, or fail."""
        self.requests += 1
        if self.down:
            raise httpx.ConnectError("nobody listens")
        if self.faults:
            error, served = self.faults.pop(0)
            if served:
                await self._inner.handle_async_request(request)
            raise error
        return await self._inner.handle_async_request(request)


def http_over(line: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """Return an HTTP client that goes over `line`."""
    return httpx.AsyncClient(transport=line, base_url="http://inner")
