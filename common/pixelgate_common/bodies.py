"""How many bytes of request bodies may be in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from pixelgate_common.errors import Overloaded

HELD_BYTES = Gauge("pixelgate_request_held_bytes", "Bytes of request bodies held in memory")


class ByteBudget:
    """Admits bodies before they are read, and refuses those that would pass the limit."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` bytes at a time."""
        self._limit, self._held = limit, 0

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold `count` bytes until the block ends; `Overloaded` (503) when they do not fit now."""
        if self._held + count > self._limit:
            raise Overloaded(f"{self._held:,} bytes of requests are being worked on; at most {self._limit:,} may be.")
        self._change(count)
        try:
            yield
        finally:
            self._change(-count)

    def _change(self, count: int) -> None:
        self._held += count
        HELD_BYTES.set(self._held)
