"""What is particular to the index in the process: durability, one owner, and an event loop that is never blocked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gallery import clustered, quick_folder
from storage_service.vectors.edge import EdgeVectorIndex
from storage_service.vectors.halves import to_unit
from storage_service.vectors.protocol import VectorIndexUnavailable, VectorPoint

DIM = 16
WRITER = """
import asyncio, os, sys
from pathlib import Path
import numpy as np
from storage_service.vectors.edge import EdgeVectorIndex
from storage_service.vectors.protocol import VectorPoint

async def main():
    index = EdgeVectorIndex(Path(sys.argv[1]))
    await index.ensure(1, 16)
    vector = np.eye(16, dtype=np.float32)[0]
    for number in range(1, 100_000):
        await index.upsert(1, [VectorPoint(number, vector, {"id": number})])
        os.write(1, f"{number}\\n".encode())

asyncio.run(main())
"""


def points(count: int) -> list[VectorPoint]:
    return [VectorPoint(n + 1, to_unit(vector, DIM), {"id": n + 1}) for n, vector in enumerate(clustered(count, DIM))]


async def test_what_was_written_is_there_after_a_clean_end() -> None:
    with quick_folder() as folder:
        for turn in range(2):
            index = EdgeVectorIndex(folder)
            await index.ensure(1, DIM)
            if turn == 0:
                await index.upsert(1, points(100))
            assert await index.count(1) == 100
            await index.close()


async def test_what_was_acknowledged_is_there_after_a_kill() -> None:
    with quick_folder() as folder:
        # The writer runs on its own, and is killed in the middle of its work.
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        acknowledged = 0
        try:
            for line in writer.stdout:
                acknowledged = int(line)
                if acknowledged >= 300:
                    break
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout.read().split())])
            writer.wait()
            writer.stdout.close()
        index = EdgeVectorIndex(folder)
        await index.ensure(1, DIM)
        assert await index.count(1) >= acknowledged >= 300
        await index.close()


async def test_a_second_owner_is_refused_and_does_no_harm() -> None:
    with quick_folder() as folder:
        first, second = EdgeVectorIndex(folder), EdgeVectorIndex(folder)
        await first.ensure(1, DIM)
        await first.upsert(1, points(3))
        with pytest.raises(VectorIndexUnavailable, match="another process"):
            await second.ensure(1, DIM)
        assert await first.count(1) == 3
        await first.close()
        await second.close()


async def test_the_event_loop_runs_while_the_index_works(tmp_path: Path) -> None:
    with quick_folder() as folder:
        index = EdgeVectorIndex(folder)
        await index.ensure(1, DIM)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        await index.upsert(1, points(2000))
        query = to_unit(np.ones(DIM), DIM)
        found = await asyncio.gather(*(index.search(1, query, 5) for _ in range(50)))
        ticking.cancel()
        assert len(found) == 50
        assert ticks > 2000 / 16  # at least once between any two chunks
        await index.close()


async def test_a_search_gets_its_turn_between_the_chunks_of_a_long_write() -> None:
    with quick_folder() as folder:
        index = EdgeVectorIndex(folder)
        await index.ensure(1, DIM)
        await index.upsert(1, points(10))
        writing = asyncio.create_task(index.upsert(1, points(20_000)))
        await asyncio.sleep(0)
        for _ in range(5):
            assert len(await index.search(1, to_unit(np.ones(DIM), DIM), 5)) == 5
        assert not writing.done()
        await writing
        await index.close()
