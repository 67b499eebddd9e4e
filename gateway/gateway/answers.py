"""Answers that are not plain JSON objects made by the framework: ready-made JSON, files passed on, event streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import structlog
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.feed import StageFeed

IDS_HEADER = "X-Pixelgate-Image-Ids"
CURSOR_HEADER = "X-Pixelgate-Next-Cursor"
log = structlog.get_logger(__name__)
_PASSED_ON = (
    "content-type",
    "content-length",
    "content-range",
    "content-disposition",
    "accept-ranges",
    "etag",
    "last-modified",
    "cache-control",
)


def json_answer(shape: BaseModel, status: int = 200) -> Response:
    """Return `shape` as it is: it was checked when it was made, and a second check would cost more than the rest."""
    return Response(shape.model_dump_json(by_alias=True), status_code=status, media_type="application/json")


def picture_answer(data: bytes, media_type: str, image_ids: Sequence[int], next_cursor: str | None) -> Response:
    """Return a picture made of stored ones, with headers that say which, and how the search goes on."""
    headers = {IDS_HEADER: ",".join(map(str, image_ids))}
    if next_cursor is not None:
        headers[CURSOR_HEADER] = next_cursor
    return Response(data, media_type=media_type, headers=headers)


class Relay(StreamingResponse):
    """Passes another service's answer on while it arrives, without its hop-by-hop headers."""

    def __init__(self, upstream: httpx.Response) -> None:
        """`upstream` is an answer with its body unread; it is closed when this one has been sent."""
        self.upstream = upstream
        headers = {name: upstream.headers[name] for name in _PASSED_ON if name in upstream.headers}
        # A stored file is a picture and nothing else, whatever a browser may see in its bytes.
        headers |= {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
        super().__init__(upstream.aiter_raw(), status_code=upstream.status_code, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.upstream.aclose()


class StageEvents(Response):
    """A stream of server-sent events: each stage's state, first as it is and then whenever it changes."""

    media_type = "text/event-stream"

    def __init__(self, feed: StageFeed, *, heartbeat_s: float, write_timeout_s: float) -> None:
        """A reader that takes nothing for `write_timeout_s` is dropped."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed, self._heartbeat_s, self._write_timeout_s = feed, heartbeat_s, write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the reader goes or the gateway stops."""
        async with self._feed.subscribe() as subscription:

            async def write(message: dict[str, Any]) -> None:
                async with asyncio.timeout(self._write_timeout_s):
                    await send(message)

            async def events() -> None:
                await write({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await write(_body("retry: 2000\n\n"))
                while not subscription.closed:
                    news = await subscription.take(self._heartbeat_s)
                    await write(_body("".join(_event(*item) for item in news) or ": still here\n\n"))
                await write({"type": "http.response.body", "body": b"", "more_body": False})

            sending = asyncio.create_task(events())
            leaving = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            except TimeoutError:
                log.info("slow_reader_dropped", after_s=self._write_timeout_s)
            except OSError as error:
                log.debug("reader_gone", reason=str(error))
            finally:
                for task in (sending, leaving):
                    task.cancel()
                await asyncio.wait([sending, leaving])


def _event(number: int, progress: BaseModel) -> str:
    return f"event: stage\nid: {number}\ndata: {progress.model_dump_json()}\n\n"


def _body(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
