"""How many pixels of whole pictures may be in memory at a time; who comes later waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """Lets pictures in one after the other, as many pixels as fit; one that is larger than all goes alone."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` pixels at a time."""
        self._limit, self._held = limit, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Hold `pixels` until the block ends, after those that asked before."""
        if self._waiting or not self._fits(pixels):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((pixels, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(pixels)
                else:
                    self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                    self._admit()
                raise
        else:
            self._held += pixels
        try:
            yield
        finally:
            self._release(pixels)

    def _fits(self, pixels: int) -> bool:
        return self._held == 0 or self._held + pixels <= self._limit

    def _release(self, pixels: int) -> None:
        self._held -= pixels
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            pixels, turn = self._waiting.popleft()
            if not turn.done():
                self._held += pixels
                turn.set_result(None)
