"""Duplicates: found in the background, grouped, decided upon for good, listed page by page, collapsed in searches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pictures_made as made
import pytest
from conftest import Service, running
from gallery import add_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pixelgate_common.contracts.storage import DecideDuplicates
from pixelgate_common.errors import NotFound
from pixelgate_common.vectors import encode_vector
from storage_service.comparisons import Comparisons, be_nice
from storage_service.database import Connection, Database
from storage_service.decoders import Decoders
from storage_service.duplicates import (
    DuplicatesAsked,
    decide,
    fetch_groups,
    joined,
    lock_groups,
    regroup,
)
from storage_service.search import cut_page
from storage_service.settings import Settings

DIM = 8


def test_groups_are_what_pairs_connect() -> None:
    assert joined([(0.9, 1, 2), (0.8, 2, 3), (0.9, 5, 9)], []) == [[1, 2, 3], [5, 9]]
    assert joined([], [(1, 2)]) == []


def test_different_pictures_never_meet_and_the_surest_pairs_come_first() -> None:
    chain = [(0.9, 1, 2), (0.8, 2, 3)]
    assert joined(chain, [(1, 3)]) == [[1, 2]]
    assert joined([(0.7, 1, 2), (0.8, 2, 3)], [(1, 3)]) == [[2, 3]]
    assert joined([(0.9, 1, 2)], [(1, 2)]) == []
    assert joined([(0.9, 1, 2), (0.9, 3, 4), (0.5, 2, 3)], [(1, 4)]) == [[1, 2], [3, 4]]


PAIRS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda p: p[0] < p[1]), max_size=15)


@given(pairs=PAIRS, different=PAIRS, seed=st.randoms())
def test_no_order_of_pairs_changes_the_groups(pairs: Any, different: Any, seed: Any) -> None:
    edges = [(0.5 + (a * b % 5) / 10, a, b) for a, b in pairs]
    groups = joined(edges, different)
    seed.shuffle(edges)
    assert joined(edges, different) == groups
    members = [image_id for group in groups for image_id in group]
    assert len(members) == len(set(members))
    together = {pair for group in groups for pair in itertools.combinations(group, 2)}
    assert not together & set(different)
    if not different:
        assert {frozenset(pair) for pair in pairs} <= {frozenset(pair) for pair in together}


class Album:
    """Pictures without files, and pairs between them as comparisons write them."""

    def __init__(self, db: Database, ids: list[int]) -> None:
        self.db, self.ids = db, ids

    async def pair(self, a: int, b: int, tier: str = "same", score: float = 0.99) -> None:
        async with self.db.connection() as conn:
            await lock_groups(conn)
            await conn.execute(
                "INSERT INTO duplicate_pairs (a, b, tier, score, version) VALUES (%s, %s, %s, %s, 'test')"
                " ON CONFLICT DO NOTHING",
                (min(self.ids[a], self.ids[b]), max(self.ids[a], self.ids[b]), tier, score),
            )
            await regroup(conn, [self.ids[a], self.ids[b]])

    async def say(self, decision: str, *numbers: int) -> None:
        ids = [self.ids[number] for number in numbers]
        await decide(self.db, DecideDuplicates.model_validate({"image_ids": ids, "decision": decision}))

    async def groups(self, tier: str = "same", limit: int = 20) -> list[list[int]]:
        return [group async for group in self.pages(tier, limit)]

    async def pages(self, tier: str, limit: int) -> AsyncIterator[list[int]]:
        cursor = None
        while True:
            asked = DuplicatesAsked.model_validate({"tier": tier, "limit": limit, "cursor": cursor})
            page = await fetch_groups(self.db, asked)
            for group in page.groups:
                yield [self.ids.index(image.id) for image in group.images]
            cursor = page.next_cursor
            if cursor is None:
                return


async def pictures(conn: Connection, count: int) -> list[int]:
    return [await add_image(conn) for _ in range(count)]


@pytest.fixture
async def album(db: Database) -> Album:
    async with db.connection() as conn:
        return Album(db, await pictures(conn, 12))


async def test_pairs_become_groups_as_they_come(album: Album) -> None:
    await album.pair(4, 7)
    await album.pair(1, 2)
    assert await album.groups() == [[1, 2], [4, 7]]
    await album.pair(2, 7)
    assert await album.groups() == [[1, 2, 4, 7]]


async def test_a_persons_word_stays_whatever_is_found(album: Album) -> None:
    await album.pair(1, 2)
    await album.pair(2, 3)
    await album.say("different", 1, 2)
    assert await album.groups() == [[2, 3]]
    await album.pair(1, 3)
    assert await album.groups() in ([[1, 3]], [[2, 3]]), "1 and 2 are never shown together"
    await album.say("same", 8, 9, 10)
    assert [8, 9, 10] in await album.groups()
    await album.say("same", 1, 2)
    assert [1, 2, 3] in await album.groups(), "the last word counts"


async def test_saying_it_twice_changes_nothing(album: Album) -> None:
    for _ in range(2):
        await album.say("same", 3, 5)
        assert await album.groups() == [[3, 5]]


async def test_nobody_can_be_decided_about(album: Album) -> None:
    with pytest.raises(NotFound):
        await decide(album.db, DecideDuplicates(image_ids=[album.ids[0], 10**9], decision="same"))
    assert await album.groups() == []


async def test_similar_holds_same_and_lists_what_says_more(album: Album) -> None:
    await album.pair(0, 1)
    await album.pair(5, 6)
    await album.pair(6, 7, "similar", 0.96)
    assert await album.groups() == [[0, 1], [5, 6]]
    assert await album.groups("similar") == [[5, 6, 7]]


async def test_pages_are_stable_while_pictures_arrive(album: Album) -> None:
    for number in range(0, 10, 2):
        await album.pair(number, number + 1)
    seen: list[list[int]] = []
    async for group in album.pages("same", 2):
        seen.append(group)
        async with album.db.connection() as conn:
            fresh = await add_image(conn)
        album.ids.append(fresh)
        await album.pair(group[0], len(album.ids) - 1)
    assert [group[:2] for group in seen] == [[n, n + 1] for n in range(0, 10, 2)]


async def test_a_cursor_of_the_other_tier_is_refused(album: Album) -> None:
    for number in range(0, 6, 2):
        await album.pair(number, number + 1, "similar")
    page = await fetch_groups(album.db, DuplicatesAsked(tier="similar", limit=1, cursor=None))
    with pytest.raises(Exception, match="another query"):
        await fetch_groups(album.db, DuplicatesAsked(tier="same", limit=1, cursor=page.next_cursor))


def test_a_page_shows_the_best_of_each_group_and_names_the_others() -> None:
    scored = [(5, 0.9), (3, 0.8), (7, 0.7), (1, 0.6), (4, 0.5), (8, 0.4)]
    groups = {5: 1, 1: 1, 3: 3, 8: 3}
    first = cut_page(scored, 0, 2, groups)
    assert [image_id for image_id, _ in first.shown] == [5, 3]
    assert first.collapsed == {5: [1], 3: [8]}
    assert first.end == (2, 3)
    second = cut_page(scored, 2, 2, groups)
    assert [image_id for image_id, _ in second.shown] == [7, 4]
    assert second.end is None, "8 is shown already, behind 3"


# With files and comparisons


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    async with running(settings) as one:
        yield one


@pytest.fixture
async def comparisons(service: Service) -> AsyncIterator[Comparisons]:
    """The background work, done when a test says so."""
    child = Decoders(1, timeout_s=30, memory_bytes=1 << 30, warm_up=be_nice)
    await child.start()
    parts = service.parts
    yield Comparisons(parts.db, parts.generations, parts.objects, child, similar_cosine=0.95, rest=0)
    await child.close()


async def compare_all(service: Service, comparisons: Comparisons) -> int:
    async with service.parts.db.connection() as conn:
        await conn.execute("UPDATE duplicates_due SET due_at = now() - interval '1 second'")
    count = 0
    while batch := await comparisons.work_off():
        count += batch
    return count


async def embed(service: Service, vectors: dict[int, Any], fingerprint: str = "test-clip-1") -> None:
    """Give pictures these vectors, as the stage `clip` would."""
    model = {"fingerprint": fingerprint, "model": "m", "dim": DIM}
    await service.client.put("/v1/stages/clip/model", json=model)
    body = {"fingerprint": fingerprint, "limit": 256}
    leased = (await service.client.post("/v1/stages/clip/lease", json=body)).json()["items"]
    items = [
        {"image_id": i["image_id"], "token": i["token"], "took_ms": 1, "vector": encode_vector(vectors[i["image_id"]])}
        for i in leased
    ]
    answer = await service.client.post("/v1/stages/clip/results", json={"fingerprint": fingerprint, "items": items})
    assert answer.json() == {"accepted": len(leased), "stale": 0}, answer.text


def towards(*values: float) -> Any:
    return np.array([*values, *[0.0] * (DIM - len(values))])


async def groups(service: Service, tier: str = "same") -> list[list[int]]:
    response = await service.client.get("/v1/duplicates", params={"tier": tier})
    assert response.status_code == 200, response.text
    return [[image["id"] for image in group["images"]] for group in response.json()["groups"]]


def photograph(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    layers = np.zeros((240, 320, 3))
    for side in (4, 8, 16, 32):
        noise = Image.fromarray(random.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
        layers += np.asarray(noise.resize((320, 240), Image.Resampling.BICUBIC), np.float64) / 4
    return Image.fromarray(layers.clip(0, 255).astype(np.uint8))


async def test_copies_are_found_by_hash_and_crops_by_vectors(service: Service, comparisons: Comparisons) -> None:
    picture, other = photograph(1), photograph(2)
    files = {
        "original": made.encoded(picture, quality=92),
        "coded": made.encoded(picture, quality=45),
        "small": made.encoded(picture.resize((160, 120)), quality=80),
        "cropped": made.encoded(picture.crop((30, 20, 300, 225)), quality=80),
        "mirrored": made.encoded(ImageOps.mirror(picture), quality=80),
        "other": made.encoded(other, quality=90),
    }
    ids = {name: (await service.create(data)).id for name, data in files.items()}
    assert (await service.client.get("/v1/duplicates")).json()["pending"] == 6
    assert await compare_all(service, comparisons) == 6
    by_hash = sorted(ids[name] for name in ("original", "coded", "small"))
    assert next(group for group in await groups(service) if group[0] == ids["original"])[:3] == by_hash
    vectors = {ids[name]: towards(1, 0.05 * number) for number, name in enumerate(ids)}
    vectors[ids["other"]] = towards(0, 1)
    await embed(service, vectors)
    assert await compare_all(service, comparisons) == 6
    assert await groups(service) == [sorted([*by_hash, ids["cropped"]])]
    # A mirrored picture is one that is much like it, and never the same.
    assert await groups(service, "similar") == [sorted([*by_hash, ids["cropped"], ids["mirrored"]])]
    assert (await service.client.get("/v1/duplicates")).json()["pending"] == 0
    assert await service.value("SELECT count(*) FROM duplicate_pairs WHERE tier = 'same'") >= 3


class Killed(BaseException):
    """The end of the process, as far as one can have it and go on."""


async def test_a_picture_that_cannot_be_compared_keeps_nobody_waiting(
    service: Service, comparisons: Comparisons, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = (await service.create(made.encoded(photograph(9), quality=90))).id
    ids = [(await service.create(made.encoded(photograph(3), quality=q))).id for q in (90, 60)]
    write = Comparisons._write

    async def stumble(self: Comparisons, image_id: int, *rest: Any) -> None:
        if image_id == odd:
            raise KeyError("lost")
        await write(self, image_id, *rest)

    monkeypatch.setattr(Comparisons, "_write", stumble)
    await compare_all(service, comparisons)
    assert await groups(service) == [ids]
    assert (await service.client.get("/v1/duplicates")).json()["pending"] == 1


async def test_comparing_again_finds_the_same_and_a_crash_loses_nothing(
    service: Service, comparisons: Comparisons, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(await service.create(made.encoded(photograph(3), quality=q))).id for q in (90, 60)]

    async def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Comparisons, "_write", killed)
        with pytest.raises(Killed):
            await compare_all(service, comparisons)
    assert (await service.client.get("/v1/duplicates")).json()["pending"] == 2
    for _ in range(2):
        await compare_all(service, comparisons)
        assert await groups(service) == [ids]
        async with service.parts.db.connection() as conn:
            await conn.execute("INSERT INTO duplicates_due SELECT id FROM images")


async def test_a_decision_outlives_new_analyses(service: Service, comparisons: Comparisons) -> None:
    ids = [(await service.create(made.encoded(photograph(3), quality=q))).id for q in (90, 60)]
    await compare_all(service, comparisons)
    body = {"image_ids": ids, "decision": "different"}
    assert (await service.client.post("/v1/duplicates/decisions", json=body)).status_code == 204
    assert await groups(service) == []
    await embed(service, dict.fromkeys(ids, towards(1)))
    await compare_all(service, comparisons)
    assert await groups(service) == await groups(service, "similar") == []
    body = {"image_ids": [ids[0], 10**9], "decision": "same"}
    assert (await service.client.post("/v1/duplicates/decisions", json=body)).status_code == 404


async def test_another_model_makes_other_pictures_similar(service: Service, comparisons: Comparisons) -> None:
    ids = [(await service.create(made.encoded(photograph(n), quality=90))).id for n in range(3)]
    await embed(service, dict(zip(ids, [towards(1), towards(1, 0.1), towards(0, 0, 1)], strict=True)))
    await compare_all(service, comparisons)
    assert await groups(service, "similar") == [ids[:2]]
    fresh = dict(zip(ids, [towards(1), towards(0, 1), towards(0, 1, 0.1)], strict=True))
    await embed(service, fresh, "test-clip-2")
    assert await service.value("SELECT fingerprint FROM generations WHERE state = 'active'") == "test-clip-2"
    await compare_all(service, comparisons)
    assert await groups(service, "similar") == [ids[1:]]


async def test_a_deleted_picture_leaves_its_groups(service: Service, comparisons: Comparisons) -> None:
    ids = [(await service.create(made.encoded(photograph(3), quality=q))).id for q in (90, 70, 50)]
    await compare_all(service, comparisons)
    assert await groups(service) == [ids]
    await service.client.delete(f"/v1/images/{ids[0]}")
    assert await groups(service) == [ids[1:]]
    await service.client.delete(f"/v1/images/{ids[1]}")
    assert await groups(service) == []
    for table in ("duplicate_pairs", "duplicate_members", "duplicates_due"):
        assert await service.value(f"SELECT count(*) FROM {table}") == 0


async def test_a_bridge_that_is_deleted_parts_its_group(service: Service) -> None:
    async with service.parts.db.connection() as conn:
        ids = await pictures(conn, 3)
    album = Album(service.parts.db, ids)
    await album.pair(0, 1)
    await album.pair(1, 2)
    await service.client.delete(f"/v1/images/{ids[1]}")
    assert await album.groups() == []


async def test_searches_show_the_best_of_each_group(service: Service) -> None:
    async with service.parts.db.connection() as conn:
        ids = [await add_image(conn, caption="a dog" + " dog" * (number % 3)) for number in range(9)]
    album = Album(service.parts.db, ids)
    await album.pair(0, 3)
    await album.pair(3, 6)
    await album.pair(1, 8)

    async def pages(**asked: Any) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = []
        cursor = None
        while True:
            response = await service.client.post("/v1/search", json={**asked, "cursor": cursor})
            assert response.status_code == 200, response.text
            hits += response.json()["hits"]
            cursor = response.json()["next_cursor"]
            if cursor is None:
                return hits

    for asked in ({"words": {"text": "dog"}}, {}, {"words": {"text": "dog"}, "filter": {"field": "id", "gt": ids[0]}}):
        plain = [hit["image"]["id"] for hit in await pages(**asked, limit=50)]
        wanted: dict[Any, list[int]] = {}
        for image_id in plain:
            number = ids.index(image_id)
            group = "a" if number in (0, 3, 6) else "b" if number in (1, 8) else number
            wanted.setdefault(group, []).append(image_id)
        for limit in (2, 50):
            hits = await pages(**asked, limit=limit, collapse="same")
            assert [hit["image"]["id"] for hit in hits] == [members[0] for members in wanted.values()]
            if limit == 50:
                assert [hit["collapsed"] for hit in hits] == [members[1:] for members in wanted.values()]


async def test_the_service_compares_by_itself(settings: Settings) -> None:
    async with running(settings.model_copy(update={"duplicates": "on"})) as service:
        ids = [(await service.create(made.encoded(photograph(3), quality=q))).id for q in (90, 60)]
        async with service.parts.db.connection() as conn:
            await conn.execute("UPDATE duplicates_due SET due_at = now()")
        async with asyncio.timeout(120):
            while await groups(service) != [ids]:
                await asyncio.sleep(0.1)
