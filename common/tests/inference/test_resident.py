from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pixelgate_common.errors import Unavailable
from pixelgate_common.inference.errors import ModelMissing, NotEnoughMemory
from pixelgate_common.inference.memory import Room
from pixelgate_common.inference.resident import MemoryBudget, Resident


class Model:
    """Stands for weights."""


class Loader:
    """Loads models, one at a time when told to, and counts."""

    def __init__(self, *, held_back: bool = False) -> None:
        self.loads = 0
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        if not held_back:
            self.may_go_on.set()

    def __call__(self) -> Model:
        self.loads += 1
        assert self.may_go_on.wait(30)
        if self.error is not None:
            raise self.error
        return Model()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; the test's own timeout ends it when it does not."""
    while not condition():
        await asyncio.sleep(0.005)


async def test_it_loads_at_first_use_and_stays_when_no_idle_time_is_set() -> None:
    loader = Loader()
    resident = Resident("m", loader)
    assert loader.loads == 0
    async with resident.use() as first:
        assert resident.state == "loaded"
        assert resident.current is first
    async with resident.use() as second:
        assert second is first
    await asyncio.sleep(0.05)
    assert (resident.state, loader.loads) == ("loaded", 1)
    await resident.close()


async def test_many_who_come_at_once_wait_for_one_load() -> None:
    loader = Loader(held_back=True)
    resident = Resident("m", loader)

    async def use() -> Model:
        async with resident.use() as model:
            return model

    users = [asyncio.create_task(use()) for _ in range(20)]
    await until(lambda: loader.loads == 1)
    loader.may_go_on.set()
    assert len({id(model) for model in await asyncio.gather(*users)}) == 1
    assert loader.loads == 1


async def test_it_unloads_after_idling_but_never_under_a_user() -> None:
    loader = Loader()
    resident = Resident("m", loader, idle_s=0.02)
    async with resident.use():
        async with resident.use():
            pass
        await asyncio.sleep(0.08)
        assert resident.state == "loaded", "one of two users is still there"
    await until(lambda: resident.state == "idle")
    async with resident.use():
        assert loader.loads == 2
    await resident.close()


async def test_a_user_who_is_cancelled_while_it_loads_does_not_end_the_load_of_others() -> None:
    loader = Loader(held_back=True)
    resident = Resident("m", loader)

    async def use() -> Model:
        async with resident.use() as model:
            return model

    impatient, patient = asyncio.create_task(use()), asyncio.create_task(use())
    await until(lambda: loader.loads == 1)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    loader.may_go_on.set()
    assert isinstance(await patient, Model)
    assert loader.loads == 1


async def test_a_load_whose_users_have_all_gone_still_idles_out() -> None:
    loader = Loader(held_back=True)
    resident = Resident("m", loader, idle_s=0.02)

    async def use() -> None:
        async with resident.use():
            pass

    user = asyncio.create_task(use())
    await until(lambda: loader.loads == 1)
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    loader.may_go_on.set()
    await until(lambda: resident.state == "loaded")
    await until(lambda: resident.state == "idle")


async def test_a_load_that_fails_tells_all_who_wait_and_the_next_use_tries_again() -> None:
    loader = Loader(held_back=True)
    loader.error = ModelMissing("it is gone")
    resident = Resident("m", loader)

    async def use() -> None:
        async with resident.use():
            raise AssertionError("there is no model")

    users = [asyncio.create_task(use()) for _ in range(3)]
    await until(lambda: loader.loads == 1)
    loader.may_go_on.set()
    errors = await asyncio.gather(*users, return_exceptions=True)
    assert [str(error) for error in errors] == ["it is gone"] * 3
    assert len({id(error) for error in errors}) == 3
    assert resident.state == "idle"
    loader.error = None
    async with resident.use():
        assert loader.loads == 2


async def test_closing_waits_for_users_and_takes_no_more() -> None:
    resident = Resident("m", Loader(), idle_s=10)
    leave = asyncio.Event()

    async def use() -> None:
        async with resident.use():
            await leave.wait()

    user = asyncio.create_task(use())
    await until(lambda: resident.state == "loaded")
    closing = asyncio.create_task(resident.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    with pytest.raises(Unavailable, match="shutting down"):
        async with resident.use():
            pass
    leave.set()
    await user
    await closing
    assert resident.state == "idle"


async def test_a_model_loaded_at_the_start_idles_out_once_it_is_watched() -> None:
    loader = Loader()
    resident = Resident("m", loader, idle_s=0.02)
    await asyncio.to_thread(resident.load_at_start)
    assert resident.state == "loaded"
    resident.watch()
    await until(lambda: resident.state == "idle")


def fixed(free_mb: int) -> Callable[[], Room]:
    return lambda: Room(free_mb * 1_000_000, "this test")


async def test_a_load_that_would_not_fit_is_refused_with_figures_before_it_begins() -> None:
    loader = Loader()
    resident = Resident("blip", loader, need_bytes=1_900_000_000, budget=MemoryBudget(room=fixed(700)))
    with pytest.raises(
        NotEnoughMemory, match=r"blip needs about 1,900 MB of memory; this test has 700 MB left"
    ) as found:
        async with resident.use():
            pass
    assert (found.value.status, loader.loads) == (503, 0)
    assert found.value.retry_after_s
    with pytest.raises(NotEnoughMemory):
        resident.load_at_start()


async def test_idle_models_make_way_the_longest_unused_first_and_used_ones_stay() -> None:
    budget = MemoryBudget(100, room=fixed(10_000))
    a, b, c = (Resident(name, Loader(), need_bytes=40, budget=budget) for name in "abc")
    for each in (b, a):
        async with each.use():
            pass
    async with c.use():
        assert (a.state, b.state, c.state) == ("loaded", "idle", "loaded")
        async with a.use():
            with pytest.raises(NotEnoughMemory, match="PIXELGATE_MODEL_MEMORY_MB has 0 MB left"):
                async with b.use():
                    pass
            assert (a.state, c.state) == ("loaded", "loaded")
    async with b.use():
        assert c.state == "idle" or a.state == "idle"


async def test_two_loads_at_once_are_counted_together() -> None:
    slow = Loader(held_back=True)
    budget = MemoryBudget(100, room=fixed(10_000))
    a, b = Resident("a", slow, need_bytes=60, budget=budget), Resident("b", Loader(), need_bytes=60, budget=budget)

    async def use() -> None:
        async with a.use():
            pass

    first = asyncio.create_task(use())
    await until(lambda: slow.loads == 1)
    with pytest.raises(NotEnoughMemory):
        async with b.use():
            pass
    slow.may_go_on.set()
    await first
    async with b.use():
        assert a.state == "idle", "it made way once it was idle"


async def test_a_failed_load_gives_back_what_was_set_aside() -> None:
    budget = MemoryBudget(100, room=fixed(10_000))
    broken, sound = Loader(), Resident("b", Loader(), need_bytes=90, budget=budget)
    broken.error = ModelMissing("gone")
    for _ in range(2):
        with pytest.raises(ModelMissing):
            async with Resident("a", broken, need_bytes=90, budget=budget).use():
                pass
    async with sound.use():
        assert sound.state == "loaded"


def anonymous_mb() -> float:
    """Return the memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    raise AssertionError("the kernel does not say RssAnon")


async def test_the_memory_of_a_real_graph_comes_back_after_idling(tmp_path: Path) -> None:
    from pixelgate_common.inference.openvino_runtime import Graph, get_core, openvino

    ops = openvino.opset13
    rng = np.random.default_rng(0)
    inputs = ops.parameter([-1, 1024], np.float32)
    hidden = inputs
    for _ in range(48):
        hidden = ops.relu(ops.matmul(hidden, ops.constant(rng.random((1024, 1024), np.float32)), False, False))
    openvino.save_model(openvino.Model([hidden], [inputs]), tmp_path / "big.xml", compress_to_fp16=False)
    del ops, inputs, hidden
    gc.collect()
    size_mb = (tmp_path / "big.bin").stat().st_size / 1_000_000
    assert size_mb > 200
    get_core()

    resident = Resident("big", lambda: Graph(tmp_path / "big.xml", "fp32", 2, side_by_side=False), idle_s=0.05)
    before = anonymous_mb()
    async with resident.use() as graph:
        (answer,) = await asyncio.to_thread(graph, np.ones((2, 1024), np.float32))
        assert answer.shape == (2, 1024)
        loaded = anonymous_mb()
    del graph
    assert loaded - before > 0.8 * size_mb
    await until(lambda: resident.state == "idle" and resident.releasing is None)
    assert anonymous_mb() - before < 0.2 * size_mb
    await resident.close()
