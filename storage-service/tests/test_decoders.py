"""Children that crash, hang, are killed or eat memory take nothing with them but their own picture."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import work_for_children as work
from pixelgate_common.errors import Unavailable
from pixelgate_common.images import BrokenImage, NotAnImage
from storage_service.decoders import Decoders


@pytest.fixture
async def decoders() -> AsyncIterator[Decoders]:
    made = Decoders(2, timeout_s=20, memory_bytes=512 << 20)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def test_calls_are_answered_by_warm_children_that_stay(decoders: Decoders) -> None:
    assert await decoders.run(work.add, 2, 3) == 5
    ids = set(await asyncio.gather(*(decoders.run(work.process_id) for _ in range(20))))
    assert ids <= set(decoders.process_ids())
    assert os.getpid() not in ids


async def test_children_are_forked_from_a_process_with_one_thread(decoders: Decoders) -> None:
    """A fork copies the locks that other threads hold, and nobody ever opens them in the copy."""
    assert await decoders.run(work.threads_of_parent) == 1


async def test_what_is_raised_comes_back(decoders: Decoders) -> None:
    with pytest.raises(NotAnImage, match="no picture"):
        await decoders.run(work.refuse)
    with pytest.raises(RuntimeError, match="KeyError: 'lost'"):
        await decoders.run(work.stumble)


async def test_a_crash_fails_its_own_call_only(decoders: Decoders) -> None:
    answers = await asyncio.gather(
        decoders.run(work.nap, 0.3), decoders.run(work.crash), *(decoders.run(work.add, n, 1) for n in range(10)),
        return_exceptions=True,
    )  # fmt: skip
    assert isinstance(answers[1], BrokenImage)
    assert answers[2:] == list(range(1, 11))
    assert isinstance(answers[0], int)
    assert len(decoders.process_ids()) == 2


async def test_a_child_killed_at_work_is_tried_once_more(decoders: Decoders, tmp_path: Path) -> None:
    assert await decoders.run(work.killed_once, tmp_path / "note") == "answered"
    with pytest.raises(Unavailable):
        await decoders.run(work.killed_always)
    assert await decoders.run(work.add, 1, 1) == 2


async def test_children_killed_while_idle_are_replaced(decoders: Decoders) -> None:
    for child in decoders.process_ids():
        os.kill(child, signal.SIGKILL)
    assert await asyncio.gather(*(decoders.run(work.add, n, n) for n in range(4))) == [0, 2, 4, 6]


async def test_the_time_of_a_call_is_bounded() -> None:
    decoders = Decoders(1, timeout_s=0.3, memory_bytes=512 << 20)
    await decoders.start()
    try:
        with pytest.raises(BrokenImage, match="PIXELGATE_STORAGE_DECODE_TIMEOUT_S"):
            await decoders.run(work.nap, 60.0)
        assert await decoders.run(work.add, 1, 2) == 3
    finally:
        await decoders.close()


async def test_the_memory_of_a_child_is_bounded(decoders: Decoders) -> None:
    assert await decoders.run(work.eat, 100) == 100 << 20
    with pytest.raises(BrokenImage, match="memory"):
        await decoders.run(work.eat, 2000)
    assert await decoders.run(work.add, 1, 2) == 3


async def test_a_caller_that_goes_away_leaves_the_child_usable(decoders: Decoders) -> None:
    calls = [asyncio.create_task(decoders.run(work.nap, 0.2)) for _ in range(2)]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    assert await asyncio.gather(*(decoders.run(work.add, n, 0) for n in range(3))) == [0, 1, 2]


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import work_for_children as work
            from storage_service.decoders import Decoders

            async def main():
                decoders = Decoders(2, timeout_s=60, memory_bytes=512 << 20)
                await decoders.start()
                ids = decoders.process_ids()
                busy = asyncio.create_task(decoders.run(work.nap, 50.0))
                while len(decoders.process_ids()) == 2:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                print(*ids, flush=True)
                await busy

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        children = [int(part) for part in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(children) == 2
    assert wait_until_gone(children) == []


def wait_until_gone(ids: list[int], patience_s: float = 20.0) -> list[int]:
    import time

    until = time.monotonic() + patience_s
    while (left := [id_ for id_ in ids if alive(id_)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
