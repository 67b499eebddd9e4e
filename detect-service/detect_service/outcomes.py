"""Many pictures of one request at a time, each with an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from pixelgate_common.batching import BatchQueue
from pixelgate_common.errors import Unavailable

T = TypeVar("T")


async def gather_all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of `work` in order, once all of it has ended; raise the first error then.

    `asyncio.gather` alone would raise at once and leave the others running, on a model that nobody holds any more.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    finally:
        errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    for error in errors:
        if error is not None:
            raise error
    return [task.result() for task in tasks]


def check_queue(queue: BatchQueue[Any, Any], stuck_after_s: float) -> None:
    """Raise `Unavailable` when `queue` has stopped or one of its pictures takes longer than `stuck_after_s`."""
    if not queue.is_open:
        raise Unavailable(f"{queue.name} has stopped.")
    if queue.busy_for_s > stuck_after_s:
        raise Unavailable(f"{queue.name} has been busy with one picture for {queue.busy_for_s:.0f} s.")
