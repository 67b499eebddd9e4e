"""Generations: Postgres and the index hold the same, whatever happened before."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery import FINGERPRINT, add_image, clustered, quick_folder, ranked
from pixelgate_common.errors import Conflict, FingerprintMismatch, InvalidRequest
from storage_service.database import Database
from storage_service.generations import Generation, Generations
from storage_service.reconcile import IndexRebuilding, Reconciler
from storage_service.vectors.conditions import OneOf
from storage_service.vectors.edge import EdgeVectorIndex
from storage_service.vectors.halves import from_half, to_unit
from storage_service.vectors.protocol import Ids, VectorIndexUnavailable

DIM = 32
OTHER = "test-model:2"


@dataclass
class Filled:
    """A generation and what is in it: row n of `vectors` is the vector of `ids[n]`."""

    generation: Generation
    ids: list[int]
    vectors: Any


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made / "vectors"


@pytest.fixture
async def generations(db: Database, folder: Path) -> AsyncIterator[Generations]:
    made = Generations(db, EdgeVectorIndex(folder))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def fill(db: Database, generations: Generations, count: int, fingerprint: str = FINGERPRINT) -> Filled:
    vectors = clustered(count, DIM)
    async with db.connection() as conn:
        generation = await generations.ensure(conn, "clip", fingerprint, "test", DIM)
        ids = [await add_image(conn, tags=[f"t{number % 5}"]) for number in range(count)]
        added = await generations.add_vectors(conn, "clip", fingerprint, list(zip(ids, vectors, strict=True)))
    assert added == count
    return Filled(generation, ids, vectors)


async def nearest(generations: Generations, filled: Filled, number: int) -> list[int]:
    found = await generations.index.search(filled.generation.id, to_unit(filled.vectors[number], DIM), 5, exact=True)
    return [image_id for image_id, _ in found]


def expected(filled: Filled, number: int) -> list[int]:
    return [filled.ids[position] for position in ranked(filled.vectors, filled.vectors[number])[:5]]


async def restarted(db: Database, folder: Path, patience_s: float = 30.0) -> Generations:
    made = Generations(db, EdgeVectorIndex(folder))
    await made.start(patience_s)
    return made


async def states(generations: Generations) -> dict[str, str]:
    return {generation.fingerprint: generation.state for generation, _ in await generations.overview()}


async def test_what_was_added_is_found(db: Database, generations: Generations) -> None:
    filled = await fill(db, generations, 100)
    assert await nearest(generations, filled, 7) == expected(filled, 7)
    assert (await generations.overview())[0][1] == 100


async def test_postgres_and_the_index_hold_the_same_values(db: Database, generations: Generations) -> None:
    filled = await fill(db, generations, 50)
    query = to_unit(np.random.default_rng(1).standard_normal(DIM), DIM)
    async with db.connection() as conn:
        rows = await (await conn.execute("SELECT image_id, vector FROM vectors")).fetchall()
    stored = {image_id: float(from_half(raw) @ query) for image_id, raw in rows}
    found = dict(await generations.index.search(filled.generation.id, query, 50))
    assert found == pytest.approx(stored, abs=2e-6)


async def test_a_vector_replaced_keeps_its_place_in_the_order_of_arrival(
    db: Database, generations: Generations
) -> None:
    filled = await fill(db, generations, 3)
    async with db.connection() as conn:
        before = await (await conn.execute("SELECT image_id, seq FROM vectors ORDER BY 1")).fetchall()
        await generations.add_vectors(conn, "clip", FINGERPRINT, [(filled.ids[0], filled.vectors[2])])
        after = await (await conn.execute("SELECT image_id, seq FROM vectors ORDER BY 1")).fetchall()
    assert after == before
    found = dict(await generations.index.search(filled.generation.id, filled.vectors[2], 3))
    assert found[filled.ids[0]] == pytest.approx(found[filled.ids[2]])


async def test_a_picture_that_was_deleted_meanwhile_gets_no_vector(db: Database, generations: Generations) -> None:
    filled = await fill(db, generations, 2)
    async with db.connection() as conn:
        await conn.execute("DELETE FROM images WHERE id = %s", (filled.ids[0],))
        added = await generations.add_vectors(
            conn, "clip", FINGERPRINT, list(zip(filled.ids, filled.vectors, strict=True))
        )
    assert added == 1


async def test_another_dimension_for_a_known_fingerprint_is_refused(db: Database, generations: Generations) -> None:
    filled = await fill(db, generations, 1)
    with pytest.raises(Conflict):
        async with db.connection() as conn:
            await generations.ensure(conn, "clip", FINGERPRINT, "test", DIM + 1)
    with pytest.raises(InvalidRequest):
        async with db.connection() as conn:
            await generations.add_vectors(conn, "clip", FINGERPRINT, [(filled.ids[0], np.ones(DIM + 1))])


async def test_vectors_of_an_unknown_fingerprint_are_refused(db: Database, generations: Generations) -> None:
    filled = await fill(db, generations, 1)
    with pytest.raises(FingerprintMismatch, match=FINGERPRINT):
        async with db.connection() as conn:
            await generations.add_vectors(conn, "clip", "unknown", [(filled.ids[0], filled.vectors[0])])


async def test_what_was_rolled_back_is_found_by_nobody_and_removed_at_the_next_start(
    db: Database, generations: Generations, folder: Path
) -> None:
    filled = await fill(db, generations, 10)
    async with db.connection() as conn:
        lost = await add_image(conn)
        await generations.add_vectors(conn, "clip", FINGERPRINT, [(lost, filled.vectors[0])])
        await conn.rollback()  # as if killed between the index and the commit
    assert await generations.index.count(filled.generation.id) == 11
    await generations.close()
    again = await restarted(db, folder)
    try:
        assert await again.index.count(filled.generation.id) == 10
    finally:
        await again.close()


async def test_a_deleted_vector_folder_is_rebuilt_from_postgres(
    db: Database, generations: Generations, folder: Path
) -> None:
    filled = await fill(db, generations, 1200)
    other = await fill(db, generations, 20, OTHER)
    await generations.close()
    shutil.rmtree(folder)
    again = await restarted(db, folder)
    try:
        await again.check()
        await again.settled()
        assert await again.index.count(filled.generation.id) == 1200
        assert await again.index.count(other.generation.id) == 20
        assert await nearest(again, filled, 3) == expected(filled, 3)
        tagged = await again.index.search(filled.generation.id, filled.vectors[0], 2000, OneOf("tags", ("t1",)))
        assert len(tagged) == 240
    finally:
        await again.close()


async def test_an_unreadable_shard_is_set_aside_and_rebuilt(
    db: Database, generations: Generations, folder: Path
) -> None:
    filled = await fill(db, generations, 30)
    await generations.close()
    (folder / f"gen-{filled.generation.id}" / "edge_config.json").write_text("{")
    again = await restarted(db, folder)
    try:
        assert await nearest(again, filled, 3) == expected(filled, 3)
        assert len(list(folder.glob("*.unreadable-*"))) == 1
    finally:
        await again.close()


async def test_a_generation_without_a_row_is_dropped_at_the_next_start(
    db: Database, generations: Generations, folder: Path
) -> None:
    async with db.connection() as conn:
        await generations.ensure(conn, "clip", FINGERPRINT, "test", DIM)
        await conn.rollback()  # as if killed before the commit
    assert len(await generations.index.present()) == 1
    await generations.close()
    again = await restarted(db, folder)
    try:
        assert await again.index.present() == set()
    finally:
        await again.close()


async def test_an_edit_whose_refresh_was_lost_is_made_good_at_the_next_start(
    db: Database, generations: Generations, folder: Path
) -> None:
    filled = await fill(db, generations, 10)
    async with db.connection() as conn:
        await conn.execute("UPDATE images SET tags = '{new}', caption = 'seen' WHERE id = %s", (filled.ids[4],))
    await generations.close()
    again = await restarted(db, folder)
    try:
        await again.settled()
        found = await again.index.search(filled.generation.id, filled.vectors[0], 10, OneOf("tags", ("new",)))
        assert [image_id for image_id, _ in found] == [filled.ids[4]]
    finally:
        await again.close()


async def test_an_edit_reaches_the_index_of_every_generation(db: Database, generations: Generations) -> None:
    filled = await fill(db, generations, 3)
    async with db.connection() as conn:
        second = await generations.ensure(conn, "clip", OTHER, "test", DIM)
        await generations.add_vectors(conn, "clip", OTHER, list(zip(filled.ids, filled.vectors, strict=True)))
    async with db.connection() as conn:
        await conn.execute("UPDATE images SET tags = '{new}' WHERE id = %s", (filled.ids[1],))
    await generations.refresh_payload([filled.ids[1], 10**9])
    for generation in (filled.generation, second):
        found = await generations.index.search(generation.id, filled.vectors[0], 10, OneOf("tags", ("new",)))
        assert [image_id for image_id, _ in found] == [filled.ids[1]]


async def test_searches_wait_for_a_generation_that_lacks_points(
    db: Database, generations: Generations, folder: Path
) -> None:
    filled = await fill(db, generations, 1500)
    await generations.close()
    shutil.rmtree(folder)
    again = await restarted(db, folder, patience_s=0)
    try:
        with pytest.raises(IndexRebuilding):
            again.need_complete(filled.generation)
        with pytest.raises(IndexRebuilding):
            await again.check()
        await again.settled()
        again.need_complete(filled.generation)
        await again.check()
    finally:
        await again.close()


async def test_a_store_that_is_away_is_tried_again(db: Database, folder: Path) -> None:
    index = AwayAtFirst(folder)
    reconciler = Reconciler(db, index, retry_s=0.01)
    await index.ensure(1, DIM)
    await reconciler.start([1], [1], 30.0)
    try:
        reconciler.check()
        assert index.refused == 2
    finally:
        await reconciler.stop()
        await index.close()


class AwayAtFirst(EdgeVectorIndex):
    """An index that does not answer the first two times."""

    refused = 0

    async def stamps(self, generation_id: int) -> AsyncIterator[tuple[Ids, Ids]]:
        if self.refused < 2:
            self.refused += 1
            raise VectorIndexUnavailable("away")
        async for ids, stamps in super().stamps(generation_id):
            yield ids, stamps


async def want(db: Database, fingerprint: str) -> None:
    async with db.connection() as conn:
        await conn.execute(
            "INSERT INTO stages (stage, enabled, fingerprint) VALUES ('clip', true, %(fingerprint)s)"
            " ON CONFLICT (stage) DO UPDATE SET fingerprint = %(fingerprint)s",
            {"fingerprint": fingerprint},
        )


async def analysed(db: Database, image_id: int, state: str) -> None:
    async with db.connection() as conn:
        await conn.execute(
            "INSERT INTO analyses (image_id, stage, state) VALUES (%(id)s, 'clip', %(state)s)"
            " ON CONFLICT (image_id, stage) DO UPDATE SET state = %(state)s",
            {"id": image_id, "state": state},
        )


async def test_a_new_generation_takes_over_when_no_picture_is_lost_by_it(
    db: Database, generations: Generations
) -> None:
    filled = await fill(db, generations, 4)
    failed_before = (await add_one(db)), (await add_one(db))
    await want(db, OTHER)
    for image_id in (*filled.ids, *failed_before):
        await analysed(db, image_id, "done")
    async with db.connection() as conn:
        await generations.ensure(conn, "clip", OTHER, "test", DIM)
    assert await states(generations) == {FINGERPRINT: "active", OTHER: "building"}

    async def add(count: int) -> bool:
        async with db.connection() as conn:
            vectors = list(zip(filled.ids[:count], filled.vectors[:count], strict=True))
            await generations.add_vectors(conn, "clip", OTHER, vectors)
        return await generations.maybe_activate("clip")

    assert not await add(2)
    for image_id in failed_before:
        await analysed(db, image_id, "failed")
    await analysed(db, filled.ids[3], "failed")
    assert not await add(3), "the fourth failed, but the active generation has it: search would lose it"
    await analysed(db, filled.ids[3], "pending")
    assert not await add(4), "something is pending"
    await analysed(db, filled.ids[3], "done")
    assert await add(4), "those that failed for good were never in any generation"
    assert await states(generations) == {FINGERPRINT: "retired", OTHER: "active"}
    assert not await generations.maybe_activate("clip")


async def test_a_generation_that_nobody_wants_any_more_does_not_take_over(
    db: Database, generations: Generations
) -> None:
    filled = await fill(db, generations, 2)
    async with db.connection() as conn:
        await generations.ensure(conn, "clip", OTHER, "test", DIM)
        await generations.add_vectors(conn, "clip", OTHER, list(zip(filled.ids, filled.vectors, strict=True)))
    await want(db, FINGERPRINT)
    assert not await generations.maybe_activate("clip")
    await want(db, OTHER)
    assert await generations.maybe_activate("clip")


async def add_one(db: Database) -> int:
    async with db.connection() as conn:
        return await add_image(conn)
