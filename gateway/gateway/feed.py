"""The event stream's source: one poller for all subscribers, and for each the latest state of every stage.

A subscriber that reads slowly misses states in between, never the last one: what waits for it is one state a stage, not
a queue, so nothing grows and nothing untrue is sent late.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import structlog
from pixelgate_common.contracts.storage import StageProgress
from pixelgate_common.errors import Overloaded, PixelgateError

from gateway.clients.storage import StorageClient

log = structlog.get_logger(__name__)


class Subscription:
    """What one reader has not seen yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[int, StageProgress]] = {}
        self._news = asyncio.Event()
        self.closed = False

    def put(self, number: int, progress: StageProgress) -> None:
        """Make `progress` the state of its stage that the reader sees next."""
        self._waiting.pop(progress.stage, None)
        self._waiting[progress.stage] = (number, progress)
        self._news.set()

    def close(self) -> None:
        """Let the reader end."""
        self.closed = True
        self._news.set()

    async def take(self, wait_s: float) -> list[tuple[int, StageProgress]]:
        """Return the states not seen yet, with their numbers, oldest first; none when nothing comes in `wait_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        self._news.clear()
        taken = list(self._waiting.values())
        self._waiting.clear()
        return taken


class StageFeed:
    """Polls the stages while somebody is subscribed, and hands out what changed."""

    def __init__(self, storage: StorageClient, *, poll_s: float, subscribers: int) -> None:
        """Ask `storage` every `poll_s` seconds, for at most `subscribers` readers."""
        self._storage, self._poll_s, self._limit = storage, poll_s, subscribers
        self._subscriptions: set[Subscription] = set()
        self._numbers = itertools.count(1)
        self._last: dict[str, StageProgress] = {}
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Subscribe for the length of the block; the present state of every stage comes first.

        Raises `Overloaded` when there are as many subscribers as may be, and what storage-service refuses with.
        """
        if self._closed or len(self._subscriptions) >= self._limit:
            raise Overloaded("There are as many readers of events as there may be.", retry_after_s=5.0)
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            self._publish((await self._storage.stages()).stages)
            for progress in self._last.values():
                subscription.put(next(self._numbers), progress)
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll())
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    async def close(self) -> None:
        """End every subscription and the poller."""
        self.end_all()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])

    def end_all(self) -> None:
        """Let every reader end, so that the server can stop without waiting for them."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()

    def _publish(self, stages: list[StageProgress]) -> None:
        before, self._last = self._last, {progress.stage: progress for progress in stages}
        for progress in stages:
            if before.get(progress.stage) != progress:
                number = next(self._numbers)
                for subscription in self._subscriptions:
                    subscription.put(number, progress)

    async def _poll(self) -> None:
        away = False
        while self._subscriptions and not self._closed:
            await asyncio.sleep(self._poll_s)
            try:
                self._publish((await self._storage.stages()).stages)
                away = False
            except PixelgateError as error:
                # Once for each outage: the stream goes on by itself, and its readers see that nothing moves.
                if not away:
                    log.warning("stages_not_known", reason=error.detail)
                away = True
            except Exception:
                log.exception("poller_failed")
                for subscription in self._subscriptions:
                    subscription.close()
                raise
