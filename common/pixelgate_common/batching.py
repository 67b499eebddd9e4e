"""Work from many requests done in batches: one queue for one blocking function, which knows nothing of its callers.

While the function runs, the next batch collects; when it is free, a lone item goes at once. Interactive items go
before bulk ones, and bulk ones cannot starve. Requests are admitted whole or not at all, so that none is left half
done when the queue is full. A batch that fails fails its own callers, and the queue goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import structlog

from pixelgate_common.errors import InvalidRequest, Overloaded, PixelgateError, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Priority = Literal["interactive", "bulk"]
log = structlog.get_logger(__name__)

_MAX_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much is taken at a time, and how much may wait.

    `max_bulk_batch` is smaller than `max_batch` where a batch of that size would keep an interactive item waiting for
    long. `max_delay_s` is how long an item that arrived while all workers were busy waits for company; an item that
    finds a free one never waits. Bulk items that waited for `bulk_patience_s` get a quarter of each batch.
    """

    max_batch: int = 32
    max_bulk_batch: int = 32
    max_places: int = 256
    max_delay_s: float = 0.0
    bulk_patience_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could ever run."""
        if not 1 <= self.max_bulk_batch <= self.max_batch <= self.max_places:
            raise ValueError("1 ≤ max_bulk_batch ≤ max_batch ≤ max_places must hold")
        if self.max_delay_s < 0 or self.bulk_patience_s < 0:
            raise ValueError("times must not be negative")


class BatchObserver(Protocol):
    """Hears what the queue does, for metrics. Called on the event loop; must return at once and must not raise."""

    def occupied(self, places: int) -> None:
        """Tell how many places are taken: items admitted and not yet answered."""

    def inferred(self, waited_s: Sequence[float], took_s: float) -> None:
        """Tell how long each item of a batch that succeeded waited, and how long the function took."""


class _Silent:
    def occupied(self, places: int) -> None:
        pass

    def inferred(self, waited_s: Sequence[float], took_s: float) -> None:
        pass


@dataclass(slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    queued_at: float
    found_free: bool


class Places(Generic[Item, Result]):
    """The places that one request was given; it hands its items in as they become ready."""

    def __init__(self, queue: BatchQueue[Item, Result], priority: Priority, count: int) -> None:
        """Hold `count` places of `queue`. Made by `BatchQueue.admit`."""
        self._queue, self._priority, self._left = queue, priority, count

    async def run(self, item: Item) -> Result:
        """Return the result for `item`. A caller that is cancelled while it waits takes its item out of the queue."""
        if self._left <= 0:
            raise RuntimeError("more items were handed in than places were asked for")
        self._left -= 1
        return await self._queue._enqueue(item, self._priority)


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    interactive: deque[_Entry[Item, Result]] = field(default_factory=deque)
    bulk: deque[_Entry[Item, Result]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.interactive) + len(self.bulk)

    def drop_gone(self) -> None:
        for lane in (self.interactive, self.bulk):
            if any(entry.future.done() for entry in lane):
                kept = [entry for entry in lane if not entry.future.done()]
                lane.clear()
                lane.extend(kept)

    def heads(self) -> list[_Entry[Item, Result]]:
        return [lane[0] for lane in (self.interactive, self.bulk) if lane]


class BatchQueue(Generic[Item, Result]):
    """One queue in front of one blocking function, which runs in `workers` threads of its own (one by default).

    `infer` takes a list of items and returns as many results in the same order. `open` and every call after it belong
    to one event loop. Raises, to those who wait: `Overloaded` (503) when there is no place, `Unavailable` (503) when
    the queue is closed, and for a batch that failed the `PixelgateError` that `infer` raised, or a RuntimeError.
    """

    def __init__(
        self,
        infer: Callable[[list[Item]], Sequence[Result]],
        limits: BatchLimits,
        *,
        name: str,
        workers: int = 1,
        observer: BatchObserver | None = None,
    ) -> None:
        """Prepare a queue called `name` (in logs and thread names); nothing runs before `open`."""
        self._infer, self._limits, self._name, self._worker_count = infer, limits, name, workers
        self._observer: BatchObserver = observer or _Silent()
        self._waiting: _Waiting[Item, Result] = _Waiting()
        self._taken = 0
        self._news = asyncio.Event()
        self._closing = False
        self._busy_since: dict[int, float] = {}
        self._item_s = 0.0
        self._workers: list[asyncio.Task[None]] = []
        self._threads: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Start to work; needs a running event loop."""
        if self._workers:
            raise RuntimeError("a queue is opened once")
        self._threads = ThreadPoolExecutor(self._worker_count, thread_name_prefix=self._name)
        for number in range(self._worker_count):
            worker = asyncio.get_running_loop().create_task(self._work(number), name=f"batches of {self._name}")
            worker.add_done_callback(self._on_worker_end)
            self._workers.append(worker)

    async def close(self) -> None:
        """Let running batches end, fail those that wait, and stop."""
        self._closing = True
        self._news.set()
        if self._workers:
            await asyncio.wait(self._workers)
        self._fail_waiting()
        if self._threads is not None:
            self._threads.shutdown(wait=True)

    @property
    def name(self) -> str:
        """What the queue is called, in logs and errors."""
        return self._name

    @property
    def is_open(self) -> bool:
        """Whether items are being worked on."""
        return bool(self._workers) and not self._closing

    @property
    def busy_for_s(self) -> float:
        """For how long the oldest running batch has been running; 0 when none is."""
        return time.monotonic() - min(self._busy_since.values()) if self._busy_since else 0.0

    @contextmanager
    def admit(self, count: int, priority: Priority = "interactive") -> Iterator[Places[Item, Result]]:
        """Hold `count` places for one request until the block ends, or raise before anything has been done.

        Raises `InvalidRequest` (422) when `count` could never fit, `Overloaded` (503) when it does not fit now, and
        `Unavailable` (503) when the queue is not open.
        """
        limit = self._limits.max_places
        if count > limit:
            raise InvalidRequest(f"At most {limit} inputs are taken at a time.")
        if not self.is_open:
            raise Unavailable(f"{self._name} is not running.")
        if self._taken + count > limit:
            raise Overloaded(
                f"{self._name} has {self._taken} of {limit} places taken.", retry_after_s=self._retry_after_s()
            )
        self._occupy(count)
        try:
            yield Places(self, priority, count)
        finally:
            self._occupy(-count)

    async def submit(self, items: Sequence[Item], priority: Priority = "interactive") -> list[Result]:
        """Return the results for `items`, in order, admitted as one request. Raises as `admit` and `infer` do."""
        with self.admit(len(items), priority) as places:
            return list(await asyncio.gather(*(places.run(item) for item in items)))

    async def _enqueue(self, item: Item, priority: Priority) -> Result:
        if not self.is_open:
            raise Unavailable(f"{self._name} is not running.")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = _Entry(item, future, time.monotonic(), len(self._busy_since) < self._worker_count)
        (self._waiting.interactive if priority == "interactive" else self._waiting.bulk).append(entry)
        self._news.set()
        return await future

    async def _work(self, number: int) -> None:
        while not self._closing:
            self._news.clear()
            self._waiting.drop_gone()
            if not self._waiting:
                await self._news.wait()
            elif (delay_s := self._delay_s()) > 0:
                await self._news_within(delay_s)
            else:
                await self._run(number, self._take())

    def _delay_s(self) -> float:
        """Return how much longer the next batch may wait to grow, 0 when it must go."""
        if len(self._waiting) >= self._limits.max_batch:
            return 0.0
        heads = self._waiting.heads()
        if any(entry.found_free for entry in heads):
            return 0.0
        return min(entry.queued_at for entry in heads) + self._limits.max_delay_s - time.monotonic()

    async def _news_within(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._news.wait()
        except TimeoutError:
            return

    def _take(self) -> list[_Entry[Item, Result]]:
        interactive, bulk, limits = self._waiting.interactive, self._waiting.bulk, self._limits
        if not interactive:
            return [bulk.popleft() for _ in range(min(len(bulk), limits.max_bulk_batch))]
        # A mixed batch would make the interactive items wait for the bulk ones, so bulk comes along only when its
        # patience is at an end.
        share = 0
        if bulk and time.monotonic() - bulk[0].queued_at >= limits.bulk_patience_s:
            share = min(len(bulk), max(1, limits.max_batch // 4), limits.max_bulk_batch)
        if limits.max_batch == 1 and share:
            return [bulk.popleft()]
        batch = [interactive.popleft() for _ in range(min(len(interactive), limits.max_batch - share))]
        return batch + [bulk.popleft() for _ in range(share)]

    async def _run(self, number: int, batch: list[_Entry[Item, Result]]) -> None:
        self._busy_since[number] = started = time.monotonic()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._infer_all, [entry.item for entry in batch]
            )
        except asyncio.CancelledError:
            self._fail(batch, Unavailable(f"{self._name} was stopped."))
            raise
        except BaseException as error:  # even SystemExit in the thread must end as an answer, or callers wait for ever
            log.error("batch_failed", queue=self._name, size=len(batch), exc_info=error)
            self._fail(batch, error)
        else:
            took_s = time.monotonic() - started
            self._item_s = took_s / len(batch) / self._worker_count
            self._observer.inferred([started - entry.queued_at for entry in batch], took_s)
            for entry, result in zip(batch, results, strict=True):
                if not entry.future.done():
                    entry.future.set_result(result)
        finally:
            del self._busy_since[number]

    def _infer_all(self, items: list[Item]) -> Sequence[Result]:
        results = self._infer(items)
        if len(results) != len(items):
            raise RuntimeError(f"{self._name} answered {len(results)} results for {len(items)} items")
        return results

    def _fail(self, batch: Sequence[_Entry[Item, Result]], error: BaseException) -> None:
        # An exception of its own for each caller: one object raised in many tasks collects all their tracebacks.
        for entry in batch:
            if not entry.future.done():
                own: Exception
                if isinstance(error, PixelgateError):
                    own = copy(error)
                else:
                    own = RuntimeError(f"The batch in {self._name} failed: {type(error).__name__}")
                own.__cause__ = error
                entry.future.set_exception(own)

    def _fail_waiting(self) -> None:
        for lane in (self._waiting.interactive, self._waiting.bulk):
            while lane:
                entry = lane.popleft()
                if not entry.future.done():
                    entry.future.set_exception(Unavailable(f"{self._name} is shutting down."))

    def _on_worker_end(self, worker: asyncio.Task[None]) -> None:
        # Reached with the queue open only through a defect in this module or a cancelled loop; never in silence.
        if not self._closing:
            self._closing = True
            error = None if worker.cancelled() else worker.exception()
            log.critical("queue_stopped", queue=self._name, exc_info=error)
            self._news.set()
        self._fail_waiting()

    def _occupy(self, change: int) -> None:
        self._taken += change
        self._observer.occupied(self._taken)

    def _retry_after_s(self) -> float:
        """Return about how long the work that is in the queue will take."""
        return min(_MAX_RETRY_AFTER_S, max(1.0, self._taken * self._item_s))
