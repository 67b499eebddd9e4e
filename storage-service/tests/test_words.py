"""Full text: what people type finds what they mean, and nothing that they type breaks it."""

from __future__ import annotations

from typing import Any

import pytest
from gallery import add_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pixelgate_common.errors import InvalidRequest
from psycopg import sql
from storage_service.database import Database
from storage_service.filters_sql import Parameters
from storage_service.words import compile_words, rank_by_words, split_words

PICTURES: dict[str, dict[str, Any]] = {
    "dogs": {"caption": "two dogs running on the green grass"},
    "car": {"caption": "a red car beside a blue house", "tags": ["summer holiday"]},
    "house": {"caption": "a blue car beside a red house"},
    "boxes": {"object_counts": {"traffic light": 2}},
    "file": {"filename": "IMG_2034.Sunset-Beach.jpg"},
    "page": {"alt_text": "photo from example.com", "page_title": "Straßenbahn in Köln"},
}


@pytest.fixture
async def album(db: Database) -> Database:
    async with db.connection() as conn:
        for name, columns in PICTURES.items():
            await add_image(conn, source_url=name, **columns)
    return db


async def find(db: Database, text: str) -> list[str]:
    async with db.connection() as conn:
        query = await compile_words(conn, text, 64)
        if query is None:
            return []
        found = await rank_by_words(conn, query, sql.SQL("TRUE"), Parameters(), 100, 1000)
        rows = await (await conn.execute("SELECT id, source_url FROM images")).fetchall()
    names = dict(rows)
    return [names[image_id] for image_id, _ in found]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("dogs", {"dogs"}),
        ("dog", {"dogs"}),
        ("running dog", {"dogs"}),
        ("runs", {"dogs"}),
        ("gra", {"dogs"}),
        ("gre gra", {"dogs"}),
        ("dog car", set()),
        ("red car", {"car", "house"}),
        ('"red car"', {"car"}),
        ('"red car" house', {"car"}),
        ('"a red car"', {"car"}),
        ("the dog on the grass", {"dogs"}),
        ("dog by the grass", {"dogs"}),
        ("the", {"dogs"}),
        ("summer", {"car"}),
        ("holidays", {"car"}),
        ("traffic", {"boxes"}),
        ("IMG_2034", {"file"}),
        ("2034", {"file"}),
        ("img_2034.sunset-beach.jpg", {"file"}),
        ("sunset beach", {"file"}),
        ("example.com", {"page"}),
        ("example", {"page"}),
        ("Köln", {"page"}),
        ("straßen", {"page"}),
        ('"red car', {"car", "house"}),
        ("", set()),
        ("?! -- &|", set()),
        ("zebra", set()),
    ],
)
async def test_what_people_type_finds_what_they_mean(album: Database, text: str, names: set[str]) -> None:
    assert set(await find(album, text)) == names


async def test_a_caption_outranks_a_page_title(db: Database) -> None:
    async with db.connection() as conn:
        await add_image(conn, source_url="title", page_title="a lighthouse")
        await add_image(conn, source_url="caption", caption="a lighthouse")
    assert await find(db, "lighthouse") == ["caption", "title"]


async def test_ranks_lie_below_one_and_equal_ones_are_ordered_by_id(db: Database) -> None:
    async with db.connection() as conn:
        ids = [await add_image(conn, caption="fish " * 50) for _ in range(3)]
        query = await compile_words(conn, "fish", 64)
        assert query is not None
        found = await rank_by_words(conn, query, sql.SQL("TRUE"), Parameters(), 100, 1000)
    assert [image_id for image_id, _ in found] == ids
    assert all(0 < rank < 1 for _, rank in found)


ODD = list("ab'\"\\&|!():*<->%{}_.,;@/ \t\n$é日\U0001f600")
ANY = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
NASTY = st.text(st.sampled_from(ODD) | ANY, max_size=40)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(NASTY, min_size=1, max_size=3))
async def test_nothing_that_is_typed_is_an_error(db: Database, texts: list[str]) -> None:
    for text in texts:
        await find(db, text)


@given(word=st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=20))
def test_a_word_is_split_from_its_neighbours(word: str) -> None:
    assert [one.text for one in split_words(f"  {word}\t{word} ", 64)] == [word, word]


async def test_of_a_word_that_very_many_have_the_newest_are_ranked(db: Database) -> None:
    async with db.connection() as conn:
        ids = [await add_image(conn, caption="fish") for _ in range(5)]
        found = await rank_by_words(conn, "'fish'", sql.SQL("TRUE"), Parameters(), 100, 3)
    assert [image_id for image_id, _ in found] == ids[2:]


@pytest.mark.parametrize(
    ("text", "query"),
    [("dog", "('dog':*)"), ("Dogs", "('dogs':* | 'dog')"), ("the dog", "('dog':*)"), ("the", "('the':*)")],
)
async def test_a_word_is_asked_for_once(db: Database, text: str, query: str) -> None:
    async with db.connection() as conn:
        assert await compile_words(conn, text, 64) == query


def test_too_many_words_are_refused() -> None:
    assert len(split_words("word " * 64, 64)) == 64
    for text in ("word " * 65, '"' + "word " * 65 + '"'):
        with pytest.raises(InvalidRequest) as caught:
            split_words(text, 64)
        assert caught.value.errors[0].field == "words.text"
