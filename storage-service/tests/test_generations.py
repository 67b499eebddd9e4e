"""Generations: Postgres and the index hold the same, whatever happened before."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from gallery import FINGERPRINT, add_image, clustered, ranked
from pixelgate_common.errors import Conflict, FingerprintMismatch, InvalidRequest
from storage_service.database import Database
from storage_service.generations import Generation, Generations
from storage_service.vectors.edge import EdgeVectorIndex

DIM = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


@pytest.fixture
async def generations(db: Database, folder: Path) -> AsyncIterator[Generations]:
    made = Generations(db, EdgeVectorIndex(folder))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def fill(db: Database, generations: Generations, count: int, seed: int = 0) -> tuple[Generation, list[int]]:
    vectors = clustered(count, DIM, seed=seed)
    async with db.connection() as conn:
        generation = await generations.ensure(conn, "clip", FINGERPRINT, "test", DIM)
        ids = [await add_image(conn, tags=[f"t{number % 5}"]) for number in range(count)]
        assert await generations.add_vectors(conn, "clip", FINGERPRINT, list(zip(ids, vectors, strict=True))) == count
    return generation, ids


async def test_what_was_added_is_found(db: Database, generations: Generations) -> None:
    generation, ids = await fill(db, generations, 100)
    vectors = clustered(100, DIM)
    found = await generations.index.search(generation.id, vectors[7], 5, exact=True)
    assert [image_id for image_id, _ in found] == [ids[n] for n in ranked(vectors, vectors[7])[:5]]
    assert found[0][1] == pytest.approx(1.0, abs=1e-3)
