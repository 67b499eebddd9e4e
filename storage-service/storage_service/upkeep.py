"""Small work that comes again and again, and must not end because it failed once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from pixelgate_common.errors import PixelgateError

log = structlog.get_logger(__name__)


class Upkeep:
    """Runs each work at the start and then every so many seconds."""

    def __init__(self) -> None:
        """Begin with no work."""
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = asyncio.Event()

    def every(self, seconds: float, name: str, work: Callable[[], Awaitable[Any]]) -> None:
        """Run `work` now and again `seconds` after it has ended, in the background; log what it raises."""
        self._tasks.append(asyncio.create_task(self._repeat(seconds, name, work), name=name))

    async def close(self) -> None:
        """Stop all work."""
        # Cancelling alone is not enough: before Python 3.12 a cancellation that meets the end of an `asyncio.wait_for`
        # (psycopg waits by it) is lost.
        self._closed.set()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def _repeat(self, seconds: float, name: str, work: Callable[[], Awaitable[Any]]) -> None:
        while not self._closed.is_set():
            try:
                await work()
            except PixelgateError as error:  # a store is away; it will be back
                log.warning("upkeep_postponed", work=name, why=error.detail)
            except Exception as error:
                log.error("upkeep_failed", work=name, exc_info=error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
