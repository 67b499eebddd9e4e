"""The batching queue: what goes together, who goes first, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from pixelgate_common.batching import BatchLimits, BatchQueue
from pixelgate_common.errors import InvalidRequest, Overloaded, Unavailable


class Doubler:
    """Doubles numbers, keeps the batches it saw, and can be held, or made to fail, from outside."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.started = threading.Semaphore(0)
        self.error: BaseException | None = None

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.started.release()
        assert self.may_go.wait(30)
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]


class Heard:
    def __init__(self) -> None:
        self.places: list[int] = []
        self.batches: list[int] = []

    def occupied(self, places: int) -> None:
        self.places.append(places)

    def inferred(self, waited_s: Sequence[float], took_s: float) -> None:
        assert took_s >= 0
        assert all(waited >= 0 for waited in waited_s)
        self.batches.append(len(waited_s))


@asynccontextmanager
async def opened(infer: Doubler, observer: Heard | None = None, **limits: float) -> AsyncIterator[BatchQueue[int, int]]:
    settings: dict[str, float] = {"max_batch": 4, "max_bulk_batch": 4, "max_places": 16, **limits}
    queue = BatchQueue(infer, BatchLimits(**settings), name="doubles", observer=observer)  # type: ignore[arg-type]
    queue.open()
    try:
        yield queue
    finally:
        infer.may_go.set()
        await queue.close()


async def until_started(infer: Doubler) -> None:
    assert await asyncio.to_thread(infer.started.acquire, timeout=30)


async def hold(queue: BatchQueue[int, int], infer: Doubler, item: int = 0) -> asyncio.Task[list[int]]:
    """Make the function busy with `item` until `infer.may_go` is set."""
    infer.may_go.clear()
    task = asyncio.create_task(queue.submit([item]))
    await until_started(infer)
    return task


def later(queue: BatchQueue[int, int], items: Sequence[int], priority: str = "interactive") -> asyncio.Task[list[int]]:
    return asyncio.create_task(queue.submit(items, priority))  # type: ignore[arg-type]


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_idle_queue_takes_a_lone_item_at_once_whatever_the_delay() -> None:
    infer = Doubler()
    async with opened(infer, max_delay_s=3600) as queue:
        assert await queue.submit([21]) == [42]
    assert infer.batches == [[21]]


async def test_items_collect_while_a_batch_runs_and_go_in_full_batches() -> None:
    infer = Doubler()
    async with opened(infer) as queue:
        first = await hold(queue, infer)
        rest = [later(queue, [number]) for number in range(1, 7)]
        await settle()
        infer.may_go.set()
        assert await first == [0]
        assert await asyncio.gather(*rest) == [[2 * number] for number in range(1, 7)]
    assert infer.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_what_arrived_while_busy_waits_for_company_until_the_batch_is_full() -> None:
    infer = Doubler()
    async with opened(infer, max_delay_s=3600) as queue:
        first = await hold(queue, infer)
        early = [later(queue, [number]) for number in (1, 2, 3)]
        await settle()
        infer.may_go.set()
        await first
        await settle()
        assert infer.batches == [[0]]
        assert await queue.submit([4]) == [8]
        await asyncio.gather(*early)
    assert infer.batches == [[0], [1, 2, 3, 4]]


async def test_what_arrived_while_busy_goes_when_its_delay_is_over() -> None:
    infer = Doubler()
    async with opened(infer, max_delay_s=0.01) as queue:
        first = await hold(queue, infer)
        second = later(queue, [1])
        await settle()
        infer.may_go.set()
        await first
        assert await second == [2]
    assert infer.batches == [[0], [1]]


async def test_interactive_goes_before_bulk_that_waited_longer() -> None:
    infer = Doubler()
    async with opened(infer, bulk_patience_s=3600, max_bulk_batch=2) as queue:
        first = await hold(queue, infer)
        bulk = later(queue, [1, 2, 3], "bulk")
        await settle()
        interactive = later(queue, [9])
        await settle()
        infer.may_go.set()
        await asyncio.gather(first, bulk, interactive)
    assert infer.batches == [[0], [9], [1, 2], [3]]


@pytest.mark.parametrize(("max_batch", "second"), [(4, [10, 11, 12, 1]), (1, [1])], ids=["shares", "one at a time"])
async def test_bulk_that_lost_its_patience_gets_its_share(max_batch: int, second: list[int]) -> None:
    infer = Doubler()
    async with opened(infer, bulk_patience_s=0, max_batch=max_batch, max_bulk_batch=max_batch) as queue:
        first = await hold(queue, infer)
        bulk = later(queue, [1, 2], "bulk")
        await settle()
        interactive = later(queue, [10, 11, 12, 13])
        await settle()
        infer.may_go.set()
        await asyncio.gather(first, bulk, interactive)
    assert infer.batches[1] == second


async def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    infer = Doubler()
    async with opened(infer, max_places=6) as queue:
        first = await hold(queue, infer)
        waiting = later(queue, [1, 2, 3])
        await settle()
        with pytest.raises(Overloaded) as refused:
            await queue.submit([4, 5, 6])
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1
        fits = later(queue, [7, 8])
        await settle()
        infer.may_go.set()
        await asyncio.gather(first, waiting, fits)
        assert await queue.submit([1, 2, 3, 4, 5, 6]) == [2, 4, 6, 8, 10, 12], "all places are free again"
    assert not {4, 5, 6} & {item for batch in infer.batches[:-2] for item in batch}


async def test_a_request_that_can_never_fit_is_refused_for_good() -> None:
    async with opened(Doubler(), max_places=6) as queue:
        with pytest.raises(InvalidRequest, match="At most 6"):
            await queue.submit(list(range(7)))


async def test_items_can_be_handed_in_one_by_one_into_places_held() -> None:
    infer = Doubler()
    async with opened(infer, max_places=4) as queue:
        with queue.admit(3) as places:
            assert await places.run(1) == 2
            with pytest.raises(Overloaded):
                await queue.submit([7, 8])
            assert list(await asyncio.gather(places.run(2), places.run(3))) == [4, 6]
            with pytest.raises(RuntimeError, match="more items"):
                await places.run(4)
        assert await queue.submit([1, 2, 3, 4]) == [2, 4, 6, 8]


async def test_callers_who_have_gone_are_dropped_before_inference() -> None:
    infer = Doubler()
    async with opened(infer) as queue:
        first = await hold(queue, infer)
        gone, stays = later(queue, [1, 2]), later(queue, [3])
        await settle()
        gone.cancel()
        await settle()
        infer.may_go.set()
        await asyncio.gather(first, stays)
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await queue.submit([5]) == [10]
    assert infer.batches == [[0], [3], [5]]


async def test_a_caller_who_leaves_during_inference_harms_nobody_in_its_batch() -> None:
    infer = Doubler()
    async with opened(infer) as queue:
        first = await hold(queue, infer)
        gone, stays = later(queue, [1]), later(queue, [2])
        await settle()
        infer.may_go.set()
        await first
        infer.may_go.clear()
        await until_started(infer)
        gone.cancel()
        await settle()
        infer.may_go.set()
        assert await stays == [4]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        pytest.param(ValueError("no"), RuntimeError, id="an exception"),
        pytest.param(SystemExit(1), RuntimeError, id="an exit in the thread"),
        pytest.param(Unavailable("later"), Unavailable, id="an error with a status of its own"),
    ],
)
async def test_a_failing_batch_fails_its_own_callers_and_the_queue_goes_on(
    error: BaseException, seen: type[Exception]
) -> None:
    infer = Doubler()
    async with opened(infer) as queue:
        infer.error = error
        results = await asyncio.gather(queue.submit([1]), queue.submit([2]), return_exceptions=True)
        assert [type(result) for result in results] == [seen, seen]
        assert results[0] is not results[1]
        infer.error = None
        assert await queue.submit([3]) == [6]
        assert queue.is_open


async def test_an_answer_of_the_wrong_length_is_a_failure_not_a_mix_up() -> None:
    queue: BatchQueue[int, int] = BatchQueue(lambda items: items[:-1], BatchLimits(), name="short")
    queue.open()
    try:
        with pytest.raises(RuntimeError, match="short failed"):
            await queue.submit([1, 2])
    finally:
        await queue.close()


async def test_closing_ends_the_running_batch_and_fails_those_who_wait() -> None:
    infer = Doubler()
    async with opened(infer) as queue:
        running = await hold(queue, infer)
        waiting = later(queue, [1])
        await settle()
        closing = asyncio.create_task(queue.close())
        await settle()
        infer.may_go.set()
        await closing
        assert await running == [0]
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting
        with pytest.raises(Unavailable, match="not running"):
            await queue.submit([2])
    assert infer.batches == [[0]]


async def test_a_worker_that_is_killed_says_so_and_leaves_nobody_waiting() -> None:
    infer = Doubler()
    async with opened(infer) as queue:
        running = await hold(queue, infer)
        waiting = later(queue, [1])
        await settle()
        (worker,) = [task for task in asyncio.all_tasks() if task.get_name() == "batches of doubles"]
        worker.cancel()
        for task in (running, waiting):
            with pytest.raises(Unavailable):
                await task
        assert not queue.is_open


async def test_the_observer_hears_places_and_batches() -> None:
    infer, heard = Doubler(), Heard()
    async with opened(infer, heard) as queue:
        assert queue.busy_for_s == 0
        first = await hold(queue, infer)
        assert queue.busy_for_s > 0
        rest = later(queue, [1, 2, 3])
        await settle()
        infer.may_go.set()
        await asyncio.gather(first, rest)
    assert heard.batches == [1, 3]
    assert max(heard.places) == 4
    assert heard.places[-1] == 0


async def test_several_workers_run_batches_side_by_side_and_share_one_line() -> None:
    infer = Doubler()
    infer.may_go.clear()
    queue = BatchQueue(infer, BatchLimits(max_batch=2, max_bulk_batch=2), name="pairs", workers=2)
    queue.open()
    try:
        tasks = [later(queue, [1])]
        await until_started(infer)
        tasks.append(later(queue, [2]))
        await until_started(infer)
        tasks += [later(queue, [number]) for number in (3, 4, 5)]
        await settle()
        assert infer.batches == [[1], [2]], "both workers are busy, each with what it found"
        infer.may_go.set()
        assert await asyncio.gather(*tasks) == [[2], [4], [6], [8], [10]]
        assert infer.batches[2:] == [[3, 4], [5]]
    finally:
        infer.may_go.set()
        await queue.close()


@pytest.mark.parametrize(
    "limits",
    [
        {"max_batch": 0, "max_bulk_batch": 0},
        {"max_batch": 8, "max_bulk_batch": 9},
        {"max_places": 1},
        {"max_delay_s": -1},
    ],
    ids=str,
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must (hold|not)"):
        BatchLimits(**limits)  # type: ignore[arg-type]
