"""The SQL and the index select exactly the pictures that a filter means, on random pictures and random filters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery import add_image, moment, quick_folder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import fits
from pixelgate_common.contracts.filters import RECORD_FIELDS, Filter
from psycopg import sql
from pydantic import TypeAdapter, ValidationError
from storage_service.database import Database
from storage_service.filters_index import translate
from storage_service.filters_sql import Parameters, filter_sql
from storage_service.payloads import fetch_payload_rows, payload_of
from storage_service.vectors.edge import EdgeVectorIndex
from storage_service.vectors.protocol import PAYLOAD_FIELDS, VectorPoint

FILTER: TypeAdapter[Any] = TypeAdapter(Filter)
TEXTS = [
    "",
    "a",
    "A",
    "b",
    "ab",
    "a%",
    "a_",
    "a\\b",
    "é",
    "ü",
    "日本",
    "\U0001f600",
    "a=b",
    "a>=2",
    "null",
    "true",
    "1",
    "x" * 300,
]
NUMBERS: list[Any] = [0, 1, -1, 2, 3, 16, 17, 20, 1.0, 1.5, 0.1, 1e23, 1e300, 2**53 + 1, -(2**70), 10**30]
VALUES: list[Any] = [*TEXTS, *NUMBERS, True, False]
NAMES = ["a", "A", "a.b", "weird = >", "ü", "x" * 90]
TIMES = [
    "2024-01-01T00:00:00+00:00",
    "2024-01-01T00:00:00.000001+00:00",
    "2024-06-01T12:00:00+02:00",
    "1969-12-31T23:59:59.999999+00:00",
    "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59.999999+00:00",
]
COUNT = 150


def random_picture(chance: random.Random) -> dict[str, Any]:
    def maybe(values: list[Any]) -> Any:
        return chance.choice([None, *values])

    def some(values: list[Any], most: int) -> list[Any]:
        return chance.sample(values, chance.randint(0, most))

    tags = [text for text in TEXTS if text]
    counts = {name: chance.choice([1, 2, 3, 15, 16, 17, 20]) for name in some(NAMES, 3)}
    return {
        "filename": maybe(TEXTS),
        "media_type": chance.choice(["image/jpeg", "image/png"]),
        "format": chance.choice(["jpeg", "png"]),
        "width": chance.choice([1, 2, 16, 17, 800]),
        "height": chance.choice([1, 2, 3]),
        "bytes": chance.choice([1, 2, 2**40, 2**53 - 1]),
        "created_at": moment(chance.choice(TIMES)),
        "captured_at": None if chance.random() < 0.3 else moment(chance.choice(TIMES)),
        "source_url": maybe([*TEXTS, "y" * 700, "y" * 700 + "z"]),
        "page_url": maybe(TEXTS),
        "page_title": maybe(TEXTS),
        "alt_text": maybe(TEXTS),
        "caption": maybe(TEXTS),
        "caption_by": maybe(["model", "person"]),
        "tags": some(tags, 4),
        "attributes": {name: chance.choice([None, *VALUES]) for name in some(NAMES, 4)},
        "exif": {name: chance.choice([None, [1, "a"], {"a": 1}, *VALUES]) for name in some(NAMES, 4)},
        "object_counts": counts,
        "objects_known": bool(counts) or chance.random() < 0.5,
    }


class Shelf:
    """The same pictures in Postgres, in the index, and in a list."""

    def __init__(self, runner: asyncio.Runner, dsn: str, folder: Path) -> None:
        self.runner = runner
        self.db = Database(dsn, max_connections=4)
        self.index = EdgeVectorIndex(folder)
        self.pictures: dict[int, dict[str, Any]] = {}

    async def open(self) -> None:
        await self.db.open()
        await self.index.ensure(1, 4)
        chance = random.Random(7)
        async with self.db.connection() as conn:
            for _ in range(COUNT):
                picture = random_picture(chance)
                self.pictures[await add_image(conn, **picture)] = picture
            rows = await fetch_payload_rows(conn, list(self.pictures))
        for image_id, picture in self.pictures.items():
            picture |= {"id": image_id, "sha256": rows[image_id]["sha256"]}
        unit = np.array([1, 0, 0, 0], dtype=np.float32)
        await self.index.upsert(1, [VectorPoint(id_, unit, payload_of(row, 1)) for id_, row in rows.items()])

    async def close(self) -> None:
        await self.index.close()
        await self.db.close()

    async def by_sql(self, tree: Any) -> set[int]:
        parameters = Parameters()
        query = sql.SQL("SELECT i.id FROM images i WHERE {}").format(filter_sql(tree, parameters))
        async with self.db.connection() as conn:
            return {row[0] for row in await (await conn.execute(query, parameters)).fetchall()}

    async def by_index(self, tree: Any) -> tuple[set[int], bool]:
        translation = translate(tree)
        unit = np.array([1, 0, 0, 0], dtype=np.float32)
        found = await self.index.search(1, unit, COUNT, translation.condition)
        return {image_id for image_id, _ in found}, translation.exact


@pytest.fixture
def shelf(postgres_dsn: str) -> Iterator[Shelf]:
    with quick_folder() as folder, asyncio.Runner() as runner:
        made = Shelf(runner, postgres_dsn, folder)
        runner.run(made.open())
        yield made
        runner.run(made.close())


def leaf(field: str, values: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    value = st.sampled_from(values)
    orders = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), value, min_size=1, max_size=2)
    one = st.one_of(
        st.builds(lambda v: {"eq": v}, value),
        st.builds(lambda v: {"in": v}, st.lists(value, min_size=1, max_size=20)),
        st.builds(lambda v: {"prefix": v}, st.sampled_from([text for text in TEXTS if text])),
        st.builds(lambda v: {"exists": v}, st.booleans()),
        orders,
    )
    return one.map(lambda comparisons: {"field": field, **comparisons})


def fields() -> st.SearchStrategy[dict[str, Any]]:
    odd: list[Any] = [float("inf"), float("-inf"), float("nan")]
    by_kind: dict[str, list[Any]] = {
        "text": [*TEXTS, "image/jpeg", "jpeg", "person", "y" * 700, "0" * 64],
        "number": [*NUMBERS, *odd, 5, 100, 800, 799.5],
        "time": [*TIMES, "2024-01-01", "2024-06-01T10:00:00"],
        "tags": TEXTS,
    }
    leaves = [leaf(field, by_kind[kind]) for field, kind in RECORD_FIELDS.items()]
    leaves += [leaf(f"objects.{name}", [*NUMBERS, *odd, 15]) for name in NAMES]
    leaves += [leaf(f"{group}.{name}", [*VALUES, *odd]) for group in ("attributes", "exif") for name in NAMES]
    return st.one_of(leaves)


FILTERS = st.recursive(
    fields(),
    lambda part: st.one_of(
        st.builds(lambda v: {"all": v}, st.lists(part, min_size=1, max_size=3)),
        st.builds(lambda v: {"any": v}, st.lists(part, min_size=1, max_size=3)),
        st.builds(lambda v: {"not": v}, part),
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_filter=FILTERS)
@example({"field": "created_at", "gt": TIMES[0], "gte": TIMES[2]})
@example({"field": "created_at", "lt": TIMES[2], "lte": TIMES[0]})
@example({"field": "id", "eq": -1})
@example({"field": "objects.a", "eq": 0})
@example({"field": "objects.a", "lt": 2})
@example({"field": "objects.a", "gte": 0})
@example({"not": {"field": "objects.a", "gte": 1}})
def test_both_translations_select_what_the_filter_means(shelf: Shelf, given_filter: dict[str, Any]) -> None:
    try:
        tree = FILTER.validate_python(given_filter)
    except ValidationError:
        return  # a comparison that the contract refuses
    wanted = {image_id for image_id, picture in shelf.pictures.items() if fits(tree, picture)}
    assert shelf.runner.run(shelf.by_sql(tree)) == wanted
    found, exact = shelf.runner.run(shelf.by_index(tree))
    assert found == wanted if exact else found >= wanted


@pytest.mark.parametrize("field", [*RECORD_FIELDS, "objects.dog", "attributes.rating", "exif.Make"])
def test_every_filterable_field_is_answered_by_an_index(field: str) -> None:
    kind = RECORD_FIELDS.get(field, "number" if field.startswith("objects.") else "text")
    value: Any = {"number": 3, "time": "2024-01-01T00:00:00Z"}.get(kind, "a")
    for comparison in ({"eq": value}, {"in": [value]}, {"exists": True}):
        assert translate(FILTER.validate_python({"field": field, **comparison})).exact
        # The condition names fields that have an index, and no other.
        assert _named(translate(FILTER.validate_python({"field": field, **comparison})).condition) <= set(
            PAYLOAD_FIELDS
        )


def _named(condition: Any) -> set[str]:
    named = {condition.field} if hasattr(condition, "field") else set()
    parts = getattr(condition, "parts", ()) or ([condition.part] if hasattr(condition, "part") else [])
    return named.union(*(_named(part) for part in parts))


@pytest.mark.parametrize(
    "tree",
    [
        {"field": "filename", "prefix": "a"},
        {"field": "width", "gte": 2**60},
        {"field": "objects.dog", "gte": 17},
        {"field": "attributes.rating", "gt": 3},
        {"not": {"all": [{"field": "width", "gte": 3}, {"field": "caption", "prefix": "a"}]}},
        {"any": [{"field": "width", "gte": 3}, {"field": "caption", "prefix": "a"}]},
    ],
)
def test_what_the_index_cannot_answer_is_said(tree: dict[str, Any]) -> None:
    assert not translate(FILTER.validate_python(tree)).exact


def test_values_are_never_part_of_the_statement() -> None:
    parameters = Parameters()
    bad = "'; DROP TABLE images; --%s"
    tree = FILTER.validate_python({"any": [{"field": f"attributes.{bad}", "eq": bad}, {"field": "tags", "eq": bad}]})
    assert "DROP" not in filter_sql(tree, parameters).as_string(None)
    assert any(bad in str(value) for value in parameters.values())
