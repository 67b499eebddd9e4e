"""The one place where pixels are worked on: a few threads behind a bounded queue, interactive jobs before bulk ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cv2
from pixelgate_common.batching import BatchQueue, Places, Priority
from pixelgate_common.errors import PixelgateError, Unavailable

from color_service import measures
from color_service.settings import Settings

Result = TypeVar("Result")
Kind = Literal["palette", "rank", "blend", "collage"]


@dataclass(frozen=True, slots=True)
class _Job:
    kind: Kind
    work: Callable[[], Any]


class Seats:
    """The places that one request was given; each takes one job."""

    def __init__(self, places: Places[_Job, Any]) -> None:
        """Hold `places`. Made by `Jobs.admit`."""
        self._places = places

    async def run(self, kind: Kind, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, done in one of the threads; the `PixelgateError` that it raises is raised."""
        outcome = await self._places.run(_Job(kind, work))
        if isinstance(outcome, PixelgateError):
            raise outcome
        result: Result = outcome
        return result


class Jobs:
    """Does jobs in `settings.thread_count` threads. Opening it and all calls belong to one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing runs before the block is entered."""
        self._stuck_after_s = settings.stuck_after_s
        self._queue: BatchQueue[_Job, Any] = BatchQueue(
            _do_all,
            settings.job_limits,
            name="color jobs",
            workers=settings.thread_count,
            observer=measures.QueueMetrics(),
        )

    async def __aenter__(self) -> Jobs:
        """Start to work."""
        # Each job has one core: OpenCV's own threads would only compete with those of the other jobs.
        cv2.setNumThreads(1)
        self._queue.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let running jobs end, fail what waits, and stop."""
        await self._queue.close()

    @contextmanager
    def admit(self, count: int, priority: Priority = "interactive") -> Iterator[Seats]:
        """Hold `count` places until the block ends; raises `Overloaded` or `Unavailable` (503) if it cannot."""
        with self._queue.admit(count, priority) as places:
            yield Seats(places)

    async def run(self, kind: Kind, work: Callable[[], Result]) -> Result:
        """Return what one interactive job returns. Raises as `admit` and `Seats.run` do."""
        with self.admit(1) as seats:
            return await seats.run(kind, work)

    async def check(self) -> dict[str, float]:
        """Return for how long the oldest job has been running; raises `Unavailable` when the queue stopped or hangs."""
        if not self._queue.is_open:
            raise Unavailable(f"{self._queue.name} has stopped.")
        if self._queue.busy_for_s > self._stuck_after_s:
            raise Unavailable(f"{self._queue.name} has been busy with one job for {self._queue.busy_for_s:.0f} s.")
        return {"busy_for_s": round(self._queue.busy_for_s, 3)}


def _do_all(jobs: list[_Job]) -> Sequence[Any]:
    return [_do(job) for job in jobs]


def _do(job: _Job) -> Any:
    """Return the job's result, or the error that it raised on purpose: a bad picture is no failure of the queue."""
    with measures.JOB_SECONDS.labels(job.kind).time():
        try:
            return job.work()
        except PixelgateError as error:
            return error
