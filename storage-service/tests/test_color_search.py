"""Search by colour finds exactly what comparing with every palette finds, under filters, page by page, fused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pictures_made as made
import pytest
from conftest import Service, running
from gallery import FINGERPRINT, clustered, quick_folder
from pixelgate_common.colors import ciede2000, encode_lab, lab_to_srgb, palette_distances, srgb_to_lab, to_hex
from pixelgate_common.contracts.storage import Search, SearchPage
from pixelgate_common.vectors import encode_vector
from psycopg.types.json import Jsonb
from storage_service.color_bounds import SLACK, bounds_of_cells
from storage_service.color_index import FEWEST, ColorIndex
from storage_service.database import Database
from storage_service.generations import Generations
from storage_service.limits import SearchLimits
from storage_service.palettes import PACKED_BYTES, pack, write_palettes
from storage_service.search import Searcher, color_score
from storage_service.settings import Settings
from storage_service.vectors.edge import EdgeVectorIndex

COUNT = 3000
Palette = list[dict[str, Any]]


def palettes(count: int, seed: int = 0) -> list[Palette]:
    """Palettes of 1 to 8 colours as pictures have them: around some colours, dark and grey ones among them."""
    random = np.random.default_rng(seed)
    centres = np.concatenate((random.integers(0, 256, (30, 3)), np.tile(random.integers(0, 60, (10, 1)), 3)))
    drawn = []
    for _ in range(count):
        colors = int(random.integers(1, 9))
        rgb = np.clip(centres[random.integers(0, 40, colors)] + random.normal(0, 12, (colors, 3)), 0, 255)
        shares = random.dirichlet(np.ones(colors))
        labs = np.round(srgb_to_lab(rgb), 2)
        drawn.append(
            [
                {"lab": lab.tolist(), "hex": to_hex(lab_to_srgb(lab)), "share": float(share)}
                for lab, share in zip(labs, shares, strict=True)
            ]
        )
    return drawn


def exhaustive(query: dict[str, Any], ids: list[int], found: list[Palette]) -> list[int]:
    """The ids by distance and id, each palette compared by itself."""
    labs = np.array([color["lab"] for color in query["colors"]], np.float32)
    weights = [color.get("weight", 1.0) for color in query["colors"]]
    padded, shares = np.zeros((len(found), 8, 3), np.float32), np.zeros((len(found), 8), np.float32)
    for row, palette in enumerate(found):
        for place, color in enumerate(palette):
            padded[row, place], shares[row, place] = color["lab"], color["share"]
    distances = palette_distances(labs, weights, padded, shares)
    order = np.lexsort((np.array(ids), distances))
    return [ids[at] for at in order if np.isfinite(distances[at])]


@dataclass
class Store:
    db: Database
    generations: Generations
    index: ColorIndex
    ids: list[int]
    palettes: list[Palette]
    limits: SearchLimits = field(default_factory=SearchLimits)

    async def search(self, **asked: Any) -> SearchPage:
        searcher = Searcher(self.db, self.generations, self.limits, self.index)
        return await searcher.search(Search.model_validate(asked))

    async def found(self, **asked: Any) -> list[int]:
        return [hit.image.id for hit in (await self.search(**asked)).hits]

    async def pages(self, **asked: Any) -> list[int]:
        found: list[int] = []
        cursor = None
        while True:
            page = await self.search(**asked, cursor=cursor)
            found += [hit.image.id for hit in page.hits]
            cursor = page.next_cursor
            if cursor is None:
                return found

    async def add(self, drawn: list[Palette], foregrounds: list[Palette] | None = None) -> list[int]:
        async with self.db.connection() as conn:
            rows = await conn.execute(
                "WITH tick AS (UPDATE clock SET seq = seq + %(n)s RETURNING seq - %(n)s AS seq)"
                " INSERT INTO images (seq, sha256, media_type, format, width, height, bytes, has_alpha, phash,"
                "   thumbhash, palette, foreground_palette, caption)"
                " SELECT tick.seq + n, sha256((tick.seq + n)::text::bytea), 'image/jpeg', 'jpeg', n, 1, 10, false, n,"
                "   '', palette, foreground, CASE WHEN n %% 5 = 0 THEN 'a lighthouse' END FROM tick,"
                " unnest(%(palettes)s::jsonb[], %(foregrounds)s::jsonb[])"
                "   WITH ORDINALITY AS p (palette, foreground, n) ORDER BY n RETURNING id",
                {
                    "n": len(drawn),
                    "palettes": [Jsonb(one) for one in drawn],
                    "foregrounds": [Jsonb(one) for one in foregrounds or [[] for _ in drawn]],
                },
            )
            ids = [row[0] for row in await rows.fetchall()]
            await write_palettes(conn, ids)
        return ids

    async def repaint(self, image_id: int, palette: Palette) -> None:
        async with self.db.connection() as conn:
            await conn.execute("UPDATE images SET palette = %s WHERE id = %s", (Jsonb(palette), image_id))
            await write_palettes(conn, [image_id])

    async def delete(self, *ids: int) -> None:
        async with self.db.connection() as conn:
            await conn.execute("DELETE FROM images WHERE id = ANY(%s)", (list(ids),))


@pytest.fixture
async def empty(db: Database) -> AsyncIterator[Store]:
    with quick_folder() as folder:
        generations = Generations(db, EdgeVectorIndex(folder))
        await generations.start()
        yield Store(db, generations, ColorIndex(db), [], [])
        await generations.close()


@pytest.fixture
async def store(empty: Store) -> Store:
    empty.palettes = palettes(COUNT)
    empty.ids = await empty.add(empty.palettes)
    return empty


def colors(*labs: Any, weights: list[float] | None = None, **more: Any) -> dict[str, Any]:
    terms = [{"lab": lab} | ({"weight": weights[n]} if weights else {}) for n, lab in enumerate(labs)]
    return {"colors": terms, **more}


def queries() -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    asked = [colors([53, 80, 67]), colors([0, 0, 0]), colors([100, 0, 0]), colors([20, 1, -1])]
    for count in (1, 2, 3, 5, 8):
        for _ in range(3):
            labs = np.round(srgb_to_lab(random.integers(0, 256, (count, 3))), 3).tolist()
            asked.append(colors(*labs, weights=random.uniform(0.1, 5, count).tolist()))
    return asked


async def test_the_ranking_is_that_of_comparing_with_every_palette(store: Store) -> None:
    assert COUNT > 2 * FEWEST, "else nothing is looked up"
    for query in queries():
        wanted = exhaustive(query, store.ids, store.palettes)
        assert await store.found(colors=query, limit=24) == wanted[:24]


async def test_pages_go_on_to_the_last_palette(store: Store) -> None:
    query = colors([40, 30, 20], [70, -20, 10])
    assert await store.pages(colors=query, limit=200) == exhaustive(query, store.ids, store.palettes)


async def test_a_hit_says_its_distance_and_a_score_that_falls_with_it(store: Store) -> None:
    lab = store.palettes[7][0]["lab"]
    page = await store.search(colors=colors(lab), limit=50)
    distances = [hit.parts.color for hit in page.hits]
    assert distances == sorted(d for d in distances if d is not None)
    assert distances[0] == pytest.approx(0, abs=0.02)
    assert [hit.score for hit in page.hits] == [color_score(d) for d in distances if d is not None]
    assert color_score(0) == 1 > color_score(10) == 0.5 > color_score(200) > 0
    assert {hit.parts.words for hit in page.hits} == {None}


async def test_equal_palettes_come_by_id_and_neither_lost_nor_twice(store: Store) -> None:
    twins = await store.add([store.palettes[3]] * 30)
    query = colors(*[color["lab"] for color in store.palettes[3]])
    found = await store.pages(colors=query, limit=7)
    assert found[:31] == sorted([store.ids[3], *twins])
    assert sorted(found) == sorted([*store.ids, *twins])


async def test_colours_with_a_small_share_do_not_count(empty: Store) -> None:
    red, blue = [53.24, 80.09, 67.2], [32.3, 79.19, -107.86]

    def of(share: float) -> Palette:
        return [{"lab": blue, "hex": "#0000ff", "share": 1 - share}, {"lab": red, "hex": "#ff0000", "share": share}]

    below, at, nothing = await empty.add([of(0.049), of(0.05), []])
    page = await empty.search(colors=colors(red))
    assert [hit.image.id for hit in page.hits] == [at, below], "a picture without a palette is not ranked"
    assert nothing not in [hit.image.id for hit in page.hits]
    assert page.hits[0].parts.color == pytest.approx(0, abs=0.02)
    assert (page.hits[1].parts.color or 0) > 40


@pytest.mark.parametrize("max_filter_ids", [0, 100_000], ids=["checked afterwards", "by ids"])
@pytest.mark.parametrize("low", [1, 2900, COUNT + 1], ids=["all", "few", "none"])
async def test_filters_lose_nothing(store: Store, max_filter_ids: int, low: int) -> None:
    store.limits = SearchLimits(max_filter_ids=max_filter_ids)
    query = colors([60, -40, 30])
    wanted = [id_ for id_ in exhaustive(query, store.ids, store.palettes) if store.ids.index(id_) + 1 >= low]
    tree = {"field": "width", "gte": low}
    left_out = wanted[:3]
    found = await store.found(colors=query, filter=tree, exclude_ids=left_out, limit=40)
    assert found == wanted[3:43]
    if low > 1:
        assert await store.pages(colors=query, filter=tree, limit=30) == wanted


async def test_the_foreground_counts_where_there_is_one(empty: Store) -> None:
    drawn, fronts = palettes(1500, 1), palettes(1500, 2)
    fronts = [front if number % 3 == 0 else [] for number, front in enumerate(fronts)]
    ids = await empty.add(drawn, fronts)
    for query in queries()[:6]:
        either = [front or whole for front, whole in zip(fronts, drawn, strict=True)]
        assert await empty.found(colors=query | {"of": "foreground"}, limit=24) == exhaustive(query, ids, either)[:24]
        assert await empty.found(colors=query, limit=24) == exhaustive(query, ids, drawn)[:24]


async def test_what_changes_is_seen_by_the_next_search_also_in_another_process(store: Store) -> None:
    other = Store(store.db, store.generations, ColorIndex(store.db), store.ids, store.palettes)
    query = colors([53.24, 80.09, 67.2])
    red: Palette = [{"lab": [53.24, 80.09, 67.2], "hex": "#ff0000", "share": 1.0}]
    before = await other.found(colors=query, limit=5)
    (fresh,) = await store.add([red])
    await store.repaint(store.ids[9], red)
    for one in (store, other):
        assert (await one.found(colors=query, limit=5))[:2] == [store.ids[9], fresh]
    await store.delete(fresh, store.ids[9])
    for one in (store, other):
        assert await one.found(colors=query, limit=5) == [id_ for id_ in before if id_ != store.ids[9]]
    await other.index.tidy()
    await store.delete(*store.ids[: COUNT // 2])
    await other.index.tidy()
    async with store.db.connection() as conn:
        now = await other.index.now(conn)
    assert len(now.ids) == COUNT // 2, "what is gone takes no memory for long"
    kept = store.ids[COUNT // 2 :]
    assert await other.found(colors=query, limit=24) == exhaustive(query, kept, store.palettes[COUNT // 2 :])[:24]


async def test_pages_neither_repeat_nor_skip_while_pictures_arrive_and_go(store: Store) -> None:
    query = colors([53, 80, 67])
    red: Palette = [{"lab": [53, 80, 67], "hex": "#ff0000", "share": 1.0}]
    wanted = exhaustive(query, store.ids, store.palettes)[:100]
    found: list[int] = []
    cursor = None
    gone: set[int] = set()
    while len(found) < 80:
        page = await store.search(colors=query, limit=10, cursor=cursor)
        found += [hit.image.id for hit in page.hits]
        cursor = page.next_cursor
        await store.add([red])
        if not gone:
            gone = {found[0], wanted[50]}
            await store.delete(*gone)
    assert found == [id_ for id_ in wanted if id_ not in gone or id_ == found[0]][:80]


async def test_searches_beside_writers_see_every_palette_whole(store: Store) -> None:
    query = colors([53, 80, 67])
    before = await store.found(colors=query, limit=24)

    async def write(seed: int) -> None:
        for palette in palettes(10, seed):
            await store.repaint(before[seed], palette)

    async def read() -> None:
        for _ in range(10):
            page = await store.search(colors=query, limit=24)
            assert len({hit.image.id for hit in page.hits}) == 24

    await asyncio.gather(write(0), write(1), read(), read())
    store.palettes = [*store.palettes]
    for seed in range(2):
        store.palettes[store.ids.index(before[seed])] = palettes(10, seed)[-1]
    assert await store.found(colors=query, limit=24) == exhaustive(query, store.ids, store.palettes)[:24]


async def test_colours_words_and_vectors_are_fused_by_weight(store: Store) -> None:
    vectors = clustered(100, 32).astype(np.float16).astype(np.float32)
    async with store.db.connection() as conn:
        await store.generations.ensure(conn, "clip", FINGERPRINT, "test", 32)
        await store.generations.add_vectors(conn, "clip", FINGERPRINT, list(zip(store.ids[:100], vectors, strict=True)))
    near = {"space": "clip", "fingerprint": FINGERPRINT, "vector": encode_vector(vectors[3])}
    lab = store.palettes[50][0]["lab"]
    by_color = await store.found(colors=colors(lab), limit=200)
    words = {"text": "lighthouse"}
    heavy = await store.search(colors=colors(lab, weight=50.0), words=words, vectors=[near], limit=200)
    assert heavy.hits[0].image.id == by_color[0]
    light = await store.search(colors=colors(lab, weight=0.01), words=words, vectors=[near | {"weight": 50}], limit=200)
    assert light.hits[0].image.id == store.ids[3]
    for hit in heavy.hits:
        assert hit.parts.color is not None
        assert (hit.parts.vector is not None) == (hit.image.id in store.ids[:100])
    top = heavy.hits[0]
    assert top.score == pytest.approx(50 / 61, abs=0.1)


async def test_results_of_stages_can_be_searched_at_once(settings: Settings) -> None:
    async with running(settings.model_copy(update={"stages": ("palette",)})) as service:
        images = [(await service.create(made.jpeg(seed=n))).id for n in range(3)]
        leased = await service.lease("palette")
        for item, lab in zip(leased, ([53.2, 80.1, 67.2], [87.7, -86.2, 83.2], [32.3, 79.2, -107.9]), strict=True):
            color = {"lab": lab, "hex": to_hex(lab_to_srgb(np.array(lab))), "share": 1}
            await service.hand_in("palette", [item], {"palette": [color], "foreground": None})
        assert await by_color(service, [33, 79, -107]) == images[2]
        assert await by_color(service, [88, -86, 83]) == images[1]
        await service.client.delete(f"/v1/images/{images[1]}")
        assert await by_color(service, [88, -86, 83]) != images[1]


async def by_color(service: Service, lab: list[float]) -> int:
    response = await service.client.post("/v1/search", json={"colors": colors(lab), "limit": 1})
    assert response.status_code == 200, response.text
    return int(response.json()["hits"][0]["image"]["id"])


@pytest.mark.parametrize(
    "query",
    [{"colors": []}, colors([0, 0, 0], weight=0), {"colors": [{"lab": [0, 0, 0], "weight": 0}]}, colors([0, 0])],
    ids=["none", "no weight", "a colour without weight", "two channels"],
)
async def test_a_query_that_says_nothing_is_refused(settings: Settings, query: dict[str, Any]) -> None:
    async with running(settings) as service:
        assert (await service.client.post("/v1/search", json={"colors": query})).status_code == 422


def test_bounds_are_never_above_the_exact_distance() -> None:
    random = np.random.default_rng(11)
    queries = [random.integers(0, 256, 3) for _ in range(20)] + [random.integers(0, 40, 3) for _ in range(10)]
    # Near grey against a vivid colour, where CIEDE2000 jumps within one cell.
    queries.append(lab_to_srgb(np.array([52.54, 58.9, -7.48])))
    for rgb in queries:
        query = srgb_to_lab(np.asarray(rgb, np.float32)).astype(np.float32)
        labs = srgb_to_lab(random.uniform(0, 255, (20_000, 3)).astype(np.float32)).astype(np.float32)
        greys = srgb_to_lab((random.uniform(0, 247, (5_000, 1)) + random.uniform(0, 8, (5_000, 3))).astype(np.float32))
        labs = np.concatenate((labs, greys.astype(np.float32)))
        bounds = bounds_of_cells(query)[encode_lab(labs)]
        exact = ciede2000(query, labs)
        assert (bounds <= exact + SLACK).all()
        assert (bounds[exact <= 10] <= exact[exact <= 10] + 0.01).all()
        assert np.median(exact - bounds) < 6, "a bound that says nothing would be one too"


def test_a_palette_takes_64_bytes() -> None:
    assert PACKED_BYTES == 64
    for palette in palettes(20):
        assert len(pack(palette)) == PACKED_BYTES
