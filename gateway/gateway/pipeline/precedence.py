"""Who goes first: stages that take long stand back while quicker ones have much to do, and never for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.clients.storage import StorageClient

_LOOK_AGAIN_S = 0.25


class Precedence:
    """Knows which stages have more work than fits into one call."""

    def __init__(self, stand_back_s: float) -> None:
        """Let a stage stand back at most `stand_back_s` before each of its calls: with much to do all day, it lives."""
        self._stand_back_s = stand_back_s
        self._much: dict[str, int] = {}

    def note(self, stage: str, rank: int, much: bool) -> None:
        """Note whether `stage` has more work than it just took."""
        if much:
            self._much[stage] = rank
        else:
            self._much.pop(stage, None)

    async def wait(self, rank: int, stopping: Callable[[], bool]) -> None:
        """Wait while a stage of a lower rank has much to do, until the patience ends or `stopping` says so."""
        until = time.monotonic() + self._stand_back_s
        while any(other < rank for other in self._much.values()) and not stopping():
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, _LOOK_AGAIN_S))


class StagesOn:
    """Which stages are on: what storage-service says, believed for a few seconds by all workers."""

    def __init__(self, storage: StorageClient, ttl_s: float) -> None:
        """Ask `storage` at most once in `ttl_s` seconds."""
        self._storage, self._ttl_s = storage, ttl_s
        self._on: frozenset[str] = frozenset()
        self._known_at: float | None = None
        self._asking = asyncio.Lock()

    async def has(self, stage: str) -> bool:
        """Return whether `stage` is on."""
        async with self._asking:
            if self._known_at is None or time.monotonic() - self._known_at > self._ttl_s:
                self._on = frozenset(one.stage for one in (await self._storage.stages()).stages)
                self._known_at = time.monotonic()
            return stage in self._on
