"""Search: the right pictures in the right order, under filters, page by page, while the store changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery import FINGERPRINT, add_image, clustered, quick_folder, ranked
from pixelgate_common.contracts.storage import Search, SearchPage, VectorsWanted
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest
from pixelgate_common.vectors import decode_vector, encode_vector
from storage_service.cursors import InvalidCursor
from storage_service.database import Database
from storage_service.generations import Generations
from storage_service.limits import SearchLimits
from storage_service.search import Searcher
from storage_service.vectors.edge import EdgeVectorIndex

DIM = 32
COUNT = 120
OTHER = "other-model:1"


@dataclass
class Store:
    """A filled store, what is in it, and short ways to ask."""

    db: Database
    generations: Generations
    vectors: Any
    ids: list[int]
    limits: SearchLimits

    async def search(self, **asked: Any) -> SearchPage:
        return await Searcher(self.db, self.generations, self.limits).search(Search.model_validate(asked))

    async def found(self, **asked: Any) -> list[int]:
        return [hit.image.id for hit in (await self.search(**asked)).hits]

    async def pages(self, **asked: Any) -> list[int]:
        """Every page of this search, one after the other."""
        found: list[int] = []
        cursor = None
        while True:
            page = await self.search(**asked, cursor=cursor)
            found += [hit.image.id for hit in page.hits]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def add(self, vectors: Any, **columns: Any) -> list[int]:
        async with self.db.connection() as conn:
            ids = [await add_image(conn, **columns) for _ in vectors]
            await self.generations.add_vectors(conn, "clip", FINGERPRINT, list(zip(ids, vectors, strict=True)))
        return ids

    def in_order(self, query: Any) -> list[int]:
        return [self.ids[position] for position in ranked(self.vectors, query)]


def near(vector: Any, **more: Any) -> dict[str, Any]:
    return {"space": "clip", "fingerprint": FINGERPRINT, "vector": encode_vector(vector), **more}


@pytest.fixture
async def store(db: Database) -> AsyncIterator[Store]:
    with quick_folder() as folder:
        async for filled in fill(db, folder):
            yield filled


async def fill(db: Database, folder: Path) -> AsyncIterator[Store]:
    generations = Generations(db, EdgeVectorIndex(folder))
    await generations.start()
    vectors = clustered(COUNT, DIM).astype(np.float16).astype(np.float32)
    made = Store(db, generations, vectors, [], SearchLimits())
    async with db.connection() as conn:
        await generations.ensure(conn, "clip", FINGERPRINT, "test", DIM)
        made.ids = [
            await add_image(
                conn,
                width=100 + number,
                tags=[f"t{number % 3}"],
                caption=f"a {'red car' if number % 4 == 0 else 'blue boat'} number{number}",
                object_counts={"dog": number % 3} if number % 3 else {},
            )
            for number in range(COUNT)
        ]
        await generations.add_vectors(conn, "clip", FINGERPRINT, list(zip(made.ids, vectors, strict=True)))
    try:
        yield made
    finally:
        await generations.close()


async def test_one_vector_ranks_by_cosine(store: Store) -> None:
    query = clustered(1, DIM, seed=5)[0]
    page = await store.search(vectors=[near(query)], limit=10)
    assert [hit.image.id for hit in page.hits] == store.in_order(query)[:10]
    cosines = sorted((store.vectors @ query).tolist(), reverse=True)[:10]
    assert [hit.score for hit in page.hits] == pytest.approx(cosines, abs=5e-4)
    assert [hit.parts.vector for hit in page.hits] == pytest.approx(cosines, abs=5e-4)
    assert {hit.parts.words for hit in page.hits} == {None}


async def test_a_picture_finds_itself_with_a_cosine_of_at_most_one(store: Store) -> None:
    hit = (await store.search(vectors=[near(store.vectors[3] * 17)], limit=1)).hits[0]
    assert hit.image.id == store.ids[3]
    assert 0.999 < hit.score <= 1.0


async def test_pages_go_to_the_end_of_the_store(store: Store) -> None:
    query = store.vectors[0]
    assert await store.pages(vectors=[near(query)], limit=7) == store.in_order(query)


async def test_equal_vectors_are_neither_lost_nor_repeated_between_pages(store: Store) -> None:
    twins = await store.add([store.vectors[5]] * 30)
    found = await store.pages(vectors=[near(store.vectors[5])], limit=4)
    assert found[:31] == sorted([store.ids[5], *twins])
    assert sorted(found) == sorted([*store.ids, *twins])


@pytest.mark.parametrize("limit", [3, 10])
@pytest.mark.parametrize(
    "query", [{"vectors": True}, {"vectors": True, "words": {"text": "car"}}, {"words": {"text": "boat"}}, {}]
)
async def test_pages_neither_repeat_nor_skip_while_pictures_arrive_and_go(
    store: Store, query: dict[str, Any], limit: int
) -> None:
    asked: dict[str, Any] = {**query, "limit": limit}
    if query.get("vectors"):
        asked["vectors"] = [near(store.vectors[0])]
    whole = await store.pages(**{**asked, "limit": 200})
    found: list[int] = []
    gone: set[int] = set()
    cursor = None
    for turn in range(200):
        page = await store.search(**asked, cursor=cursor)
        found += [hit.image.id for hit in page.hits]
        cursor = page.next_cursor
        if cursor is None:
            break
        await store.add([store.vectors[0]], caption="a red car and a blue boat")
        if turn == 1:  # one that was shown, not the last, and one that was not
            gone = {found[0], whole[-1]}
            async with store.db.connection() as conn:
                await conn.execute("DELETE FROM images WHERE id = ANY(%s)", (list(gone),))
            await store.generations.remove(gone)
    if len(query) == 2:  # fused ranks move by one where a picture is gone; nothing comes twice or not at all
        assert sorted(found) == sorted(set(whole) - gone | {whole[0]} if whole[0] in found else set(whole) - gone)
    else:
        assert found == [image_id for image_id in whole if image_id != whole[-1]]


@pytest.mark.parametrize(
    "tree",
    [
        {"field": "tags", "eq": "t1"},
        {"all": [{"field": "width", "gte": 150}, {"not": {"field": "objects.dog", "gte": 2}}]},
        {"field": "caption", "prefix": "a red"},
        {"any": [{"field": "caption", "prefix": "a red"}, {"field": "width", "lt": 110}]},
    ],
    ids=["in-the-index", "tree-in-the-index", "as-ids", "tree-as-ids"],
)
@pytest.mark.parametrize("max_filter_ids", [20_000, 0], ids=["ids-allowed", "checked-afterwards"])
async def test_a_filter_cuts_the_answer(store: Store, tree: dict[str, Any], max_filter_ids: int) -> None:
    store.limits = SearchLimits(max_filter_ids=max_filter_ids)
    query = store.vectors[0]
    wanted = set(await store.pages(filter=tree, limit=50))
    assert 0 < len(wanted) < COUNT
    expected = [image_id for image_id in store.in_order(query) if image_id in wanted]
    assert await store.pages(vectors=[near(query)], filter=tree, limit=9) == expected
    assert set(await store.pages(words={"text": "a"}, filter=tree, limit=9)) == wanted


async def test_a_filter_that_nothing_fits_gives_an_empty_page(store: Store) -> None:
    for tree in ({"field": "tags", "eq": "none"}, {"field": "caption", "prefix": "none"}):
        page = await store.search(vectors=[near(store.vectors[0])], words={"text": "car"}, filter=tree)
        assert page.hits == []
        assert page.next_cursor is None


async def test_a_stale_point_is_never_shown(store: Store) -> None:
    # Edited and deleted behind the index's back, as by a process that was killed after its commit.
    async with store.db.connection() as conn:
        await conn.execute("UPDATE images SET tags = '{other}' WHERE id = %s", (store.ids[1],))
        await conn.execute("DELETE FROM images WHERE id = %s", (store.ids[4],))
    found = await store.found(vectors=[near(store.vectors[1])], filter={"field": "tags", "eq": "t1"}, limit=200)
    assert store.ids[1] not in found
    assert store.ids[4] not in found
    assert len(found) == COUNT // 3 - 2


async def test_excluded_pictures_are_left_out(store: Store) -> None:
    left_out = store.in_order(store.vectors[0])[:5]
    for asked in ({"vectors": [near(store.vectors[0])]}, {"words": {"text": "a"}}, {}):
        found = await store.pages(**asked, exclude_ids=left_out, limit=50)
        assert not set(found) & set(left_out)
        assert len(found) == COUNT - 5


async def test_words_and_vectors_are_fused_and_every_hit_has_its_parts(store: Store) -> None:
    query = store.vectors[1]  # a blue boat
    page = await store.search(vectors=[near(query)], words={"text": "red car", "weight": 2.0}, limit=COUNT)
    assert len(page.hits) == COUNT
    position = {image_id: rank for rank, image_id in enumerate(store.in_order(query), start=1)}
    for hit in page.hits:
        number = store.ids.index(hit.image.id)
        assert hit.parts.vector == pytest.approx(float(store.vectors[number] @ query), abs=1e-3)
        assert (hit.parts.words is not None) == (number % 4 == 0)
        if hit.parts.words is None:
            assert hit.score == pytest.approx(1 / (60 + position[hit.image.id]))
        else:
            assert hit.score > 2 / (60 + COUNT)
    scores = [hit.score for hit in page.hits]
    assert scores == sorted(scores, reverse=True)


async def test_hits_by_words_alone_get_their_cosine_and_hits_by_vector_alone_their_words(store: Store) -> None:
    store.limits = SearchLimits(candidates=10)
    page = await store.search(vectors=[near(store.vectors[0])], words={"text": "boat"}, limit=20)
    for hit in page.hits:
        number = store.ids.index(hit.image.id)
        assert hit.parts.vector == pytest.approx(float(store.vectors[number] @ store.vectors[0]), abs=1e-3)
        assert (hit.parts.words is not None) == (number % 4 != 0)


async def test_a_picture_without_a_vector_is_found_by_its_words(store: Store) -> None:
    async with store.db.connection() as conn:
        alone = await add_image(conn, caption="a lighthouse")
    page = await store.search(vectors=[near(store.vectors[0])], words={"text": "lighthouse"}, limit=200)
    hit = next(hit for hit in page.hits if hit.image.id == alone)
    assert hit.parts.vector is None
    assert hit.parts.words is not None


async def test_two_vectors_are_fused(store: Store) -> None:
    page = await store.search(vectors=[near(store.vectors[0]), near(store.vectors[1], weight=3.0)], limit=5)
    top = page.hits[0]
    number = store.ids.index(top.image.id)
    cosines = store.vectors[number] @ store.vectors[0], store.vectors[number] @ store.vectors[1]
    assert top.parts.vector == pytest.approx(float(cosines[0] + 3 * cosines[1]) / 4, abs=1e-3)
    assert store.ids[1] in [hit.image.id for hit in page.hits]


async def test_without_vectors_and_words_the_newest_come_first(store: Store) -> None:
    assert await store.pages(limit=11) == store.ids[::-1]


async def test_an_unknown_fingerprint_names_those_that_are_there(store: Store) -> None:
    with pytest.raises(FingerprintMismatch, match=FINGERPRINT) as caught:
        await store.search(vectors=[near(store.vectors[0], fingerprint=OTHER)])
    assert caught.value.errors[0].field == "vectors.0.fingerprint"
    assert caught.value.status == 409


@pytest.mark.parametrize("vector", [np.ones(DIM + 1), np.zeros(DIM)], ids=["dimension", "zero"])
async def test_a_vector_that_cannot_be_compared_is_refused(store: Store, vector: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await store.search(vectors=[near(store.vectors[0]), near(vector)])
    assert caught.value.errors[0].field == "vectors.1.vector"


async def test_a_cursor_of_another_query_is_refused(store: Store) -> None:
    cursor = (await store.search(vectors=[near(store.vectors[0])], limit=3)).next_cursor
    for asked in (
        {"vectors": [near(store.vectors[1])], "cursor": cursor},
        {"vectors": [near(store.vectors[0])], "filter": {"field": "width", "gte": 1}, "cursor": cursor},
        {"cursor": cursor},
        {"vectors": [near(store.vectors[0])], "cursor": "nonsense"},
        {"vectors": [near(store.vectors[0])], "cursor": "é"},
    ):
        with pytest.raises(InvalidCursor) as caught:
            await store.search(**asked)
        assert (caught.value.status, caught.value.errors[0].field) == (422, "cursor")


async def test_stored_vectors_are_handed_out(store: Store) -> None:
    searcher = Searcher(store.db, store.generations, store.limits)
    wanted = VectorsWanted(space="clip", image_ids=[store.ids[0], 10**9], fingerprint=FINGERPRINT)
    vectors = (await searcher.vectors(wanted)).vectors
    assert vectors[10**9] is None
    stored = vectors[store.ids[0]]
    assert stored is not None
    np.testing.assert_allclose(decode_vector(stored), store.vectors[0], atol=1e-3)
    with pytest.raises(FingerprintMismatch):
        await searcher.vectors(wanted.model_copy(update={"fingerprint": OTHER}))
