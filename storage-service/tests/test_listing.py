"""Lists: every order, page by page, while pictures arrive and go."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from gallery import add_image
from pixelgate_common.contracts.storage import ImagePage, ListImages, Sort
from storage_service.cursors import InvalidCursor, encode_cursor
from storage_service.database import Database
from storage_service.limits import SearchLimits
from storage_service.listing import Lister, ListPlace

SORTS = get_args(Sort)
START = datetime(2024, 1, 1, tzinfo=UTC)


async def ask(db: Database, **asked: Any) -> ImagePage:
    return await Lister(db, SearchLimits(facet_values=3)).page(ListImages.model_validate(asked))


async def fill(db: Database, count: int = 40) -> None:
    """Pictures with ties and gaps in every order."""
    chance = random.Random(3)
    async with db.connection() as conn:
        for number in range(count):
            await add_image(
                conn,
                filename=chance.choice([None, "a.jpg", "B.jpg", "ä.jpg", f"{number}.jpg"]),
                captured_at=chance.choice([None, START, START + timedelta(microseconds=number % 3)]),
                bytes=chance.choice([1, 2, 3]),
                tags=["all", f"t{number % 4}"] if number % 2 else [],
                format=["jpeg", "png", "gif"][number % 3],
                caption_by=[None, "model"][number % 2],
                caption=f"number {number}",
            )


async def pages(db: Database, limit: int, **asked: Any) -> list[int]:
    found: list[int] = []
    cursor = None
    while True:
        page = await ask(db, **asked, limit=limit, cursor=cursor)
        assert len(page.images) == limit or page.next_cursor is None
        found += [image.id for image in page.images]
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("sort", SORTS)
async def test_pages_give_the_whole_order(db: Database, sort: str) -> None:
    await fill(db)
    whole = await ask(db, sort=sort, limit=500)
    assert len(whole.images) == whole.total == 40
    field, down = sort.lstrip("-"), sort.startswith("-")
    keys = [getattr(image, field) for image in whole.images]
    there = [key for key in keys if key is not None]
    assert keys == there + [None] * (40 - len(there)), "those without come last either way"
    if field in ("bytes", "captured_at"):
        assert there == sorted(there, reverse=down)
        ties = [(getattr(image, field), image.id) for image in whole.images[: len(there)]]
        assert ties == sorted(ties, reverse=down)
    for limit in (1, 7, 39, 40):
        assert await pages(db, limit, sort=sort) == [image.id for image in whole.images]


@pytest.mark.parametrize("sort", SORTS)
async def test_pages_neither_repeat_nor_skip_while_pictures_arrive_and_go(db: Database, sort: str) -> None:
    await fill(db)
    before = [image.id for image in (await ask(db, sort=sort, limit=500)).images]
    found: list[int] = []
    cursor = None
    while True:
        page = await ask(db, sort=sort, limit=6, cursor=cursor)
        found += [image.id for image in page.images]
        cursor = page.next_cursor
        if cursor is None:
            break
        if len(found) < 30:
            await fill(db, 3)
            async with db.connection() as conn:  # the cursor's own picture goes
                await conn.execute("DELETE FROM images WHERE id = %s", (found[-1],))
    assert len(found) == len(set(found))
    assert [image_id for image_id in found if image_id in set(before)] == before


async def test_a_filter_cuts_the_list_its_total_and_its_facets(db: Database) -> None:
    await fill(db)
    tree = {"field": "tags", "eq": "all"}
    page = await ask(db, filter=tree, limit=3, facets=["format", "tags", "caption_by", "media_type"])
    assert page.total == 20
    assert all("all" in image.tags for image in page.images)
    facets = {name: [(one.value, one.count) for one in counts] for name, counts in page.facets.items()}
    assert facets["tags"] == [("all", 20), ("t1", 10), ("t3", 10)]
    assert facets["caption_by"] == [("model", 20)]
    assert facets["media_type"] == [("image/jpeg", 20)]
    assert sum(count for _, count in facets["format"]) == 20


async def test_a_facet_names_its_most_frequent_values_only(db: Database) -> None:
    await fill(db)
    assert len((await ask(db, facets=["tags"])).facets["tags"]) == 3


async def test_an_empty_store_is_one_empty_page(db: Database) -> None:
    page = await ask(db, facets=["tags"])
    assert (page.images, page.next_cursor, page.total, page.facets) == ([], None, 0, {"tags": []})


@pytest.mark.parametrize(
    ("sort", "place"),
    [
        ("captured_at", ListPlace(key="yesterday", id=1)),
        ("captured_at", ListPlace(key=5, id=1)),
        ("bytes", ListPlace(key="5", id=1)),
        ("filename", ListPlace(key="a\x00", id=1)),
        ("-created_at", ListPlace(key=None, id=1)),
    ],
)
async def test_a_cursor_that_was_made_up_is_refused(db: Database, sort: str, place: ListPlace) -> None:
    cursor = encode_cursor(ListImages.model_validate({"sort": sort}), place)
    with pytest.raises(InvalidCursor) as caught:
        await ask(db, sort=sort, cursor=cursor)
    assert (caught.value.status, caught.value.errors[0].field) == (422, "cursor")


async def test_a_cursor_of_another_list_is_refused(db: Database) -> None:
    await fill(db, 5)
    cursor = (await ask(db, limit=2)).next_cursor
    for asked in ({"sort": "bytes"}, {"filter": {"field": "width", "gt": 1}}):
        with pytest.raises(InvalidCursor):
            await ask(db, limit=2, cursor=cursor, **asked)
