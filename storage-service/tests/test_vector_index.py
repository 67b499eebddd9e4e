"""One suite for every vector index: Qdrant's engine in the process, its client's own mode as an oracle, and a server.

The server's part runs where PIXELGATE_TEST_QDRANT_URL names one.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from gallery import clustered, quick_folder, ranked
from qdrant_client import AsyncQdrantClient
from storage_service.vectors import conditions
from storage_service.vectors.conditions import And, Between, Condition, During, Not, OneOf, Or, Present
from storage_service.vectors.edge import CHUNK_POINTS, EdgeVectorIndex
from storage_service.vectors.halves import to_unit
from storage_service.vectors.protocol import PAYLOAD_FIELDS, VectorIndex, VectorIndexUnavailable, VectorPoint
from storage_service.vectors.qdrant import QdrantVectorIndex, connect

DIM = 24
COUNT = 3 * CHUNK_POINTS + 5
URL = os.environ.get("PIXELGATE_TEST_QDRANT_URL")
WHY_SKIPPED = "NOT TESTED against a Qdrant server: PIXELGATE_TEST_QDRANT_URL is not set"
SERVER = pytest.param("server", marks=[pytest.mark.server, pytest.mark.skipif(URL is None, reason=WHY_SKIPPED)])

MIDNIGHT = "2024-01-01T00:00:00.000000+00:00"
NOON = "2024-01-01T12:00:00.000001+00:00"


@pytest.fixture(params=["edge", "client", SERVER])
async def index(request: pytest.FixtureRequest) -> AsyncIterator[VectorIndex]:
    if request.param == "edge":
        with quick_folder() as folder:
            edge = EdgeVectorIndex(folder)
            yield edge
            await edge.close()
        return
    # The client's own mode says at every turn what it does without.
    warnings.filterwarnings("ignore", message="Payload indexes have no effect")
    warnings.filterwarnings("ignore", message="Local mode performs exact")
    client = AsyncQdrantClient(":memory:") if request.param == "client" else connect(str(URL))
    remote = QdrantVectorIndex(client, f"test-{uuid.uuid4().hex}")
    yield remote
    for generation in await remote.present():
        await remote.drop(generation)
    await remote.close()


def vectors(count: int = COUNT) -> Any:
    return np.stack([to_unit(vector, DIM) for vector in clustered(count, DIM)])


def payload(number: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number + 1,
        "stamp": 1000 + number,
        "width": number,
        "bytes": 2**40 + number,
        "format": ["jpeg", "png"][number % 2],
        "created_at": MIDNIGHT if number % 2 else NOON,
    }
    if number % 3:
        made["tags"] = [f"t{number % 5}", "all"]
    return made


async def filled(index: VectorIndex, generation: int = 1) -> Any:
    rows = vectors()
    await index.ensure(generation, DIM)
    points = [VectorPoint(number + 1, vector, payload(number)) for number, vector in enumerate(rows)]
    await index.upsert(generation, points)
    return rows


async def test_search_ranks_by_cosine(index: VectorIndex) -> None:
    rows = await filled(index)
    query = to_unit(np.random.default_rng(3).standard_normal(DIM), DIM)
    found = await index.search(1, query, 10, exact=True)
    assert [image_id - 1 for image_id, _ in found] == ranked(rows, query)[:10]
    assert [score for _, score in found] == pytest.approx(sorted(rows @ query, reverse=True)[:10], abs=1e-5)
    assert await index.count(1) == COUNT


async def test_every_filterable_field_has_an_index(index: VectorIndex, request: pytest.FixtureRequest) -> None:
    await index.ensure(1, DIM)
    if request.node.callspec.params["index"] == "client":
        return  # needs none, and keeps no list of them
    assert isinstance(index, EdgeVectorIndex | QdrantVectorIndex)
    assert await index.indexed_fields(1) == set(PAYLOAD_FIELDS)


CONDITIONS: list[tuple[str, Condition, Any]] = [
    ("one of texts", OneOf("tags", ("t1", "t2")), lambda n: n % 3 and n % 5 in (1, 2)),
    ("one of numbers", OneOf("width", (3, 5, 900)), lambda n: n in (3, 5)),
    ("large numbers", OneOf("bytes", (2**40 + 7,)), lambda n: n == 7),
    ("between", Between("width", 4, 9), lambda n: 4 <= n <= 9),
    ("from", Between("bytes", 2**40 + 10), lambda n: n >= 10),
    ("to the microsecond", During("created_at", gt=MIDNIGHT), lambda n: n % 2 == 0),
    ("another zone", During("created_at", gte=NOON, lte="2024-01-01T14:00:00.000001+02:00"), lambda n: n % 2 == 0),
    ("present", Present("tags"), lambda n: n % 3),
    ("absent", Not(Present("tags")), lambda n: n % 3 == 0),
    ("not includes those without", Not(OneOf("tags", ("t1",))), lambda n: not (n % 3 and n % 5 == 1)),
    ("a field that nobody has", OneOf("caption_by", ("person",)), lambda n: False),
    ("ids", conditions.ids([1, 2, 10**9]), lambda n: n in (0, 1)),
    ("no ids", conditions.ids([]), lambda n: False),
    ("always", conditions.ALWAYS, lambda n: True),
    ("never", conditions.NEVER, lambda n: False),
    ("not never", Not(conditions.NEVER), lambda n: True),
    ("or of nothing and something", Or((conditions.NEVER, OneOf("width", (2,)))), lambda n: n == 2),
    (
        "a tree",
        And(
            (
                Or((Between("width", 0, 9), Between("width", 20, 29))),
                Not(And((Present("tags"), OneOf("format", ("png",))))),
            )
        ),
        lambda n: (n <= 9 or 20 <= n <= 29) and not (n % 3 and n % 2),
    ),
]


@pytest.mark.parametrize(("condition", "fits"), [one[1:] for one in CONDITIONS], ids=[one[0] for one in CONDITIONS])
async def test_a_condition_selects_what_it_says(index: VectorIndex, condition: Condition, fits: Any) -> None:
    rows = await filled(index)
    found = await index.search(1, rows[0], COUNT, condition)
    assert {image_id - 1 for image_id, _ in found} == {number for number in range(COUNT) if fits(number)}


async def test_a_point_is_replaced_whole(index: VectorIndex) -> None:
    rows = await filled(index)
    await index.upsert(1, [VectorPoint(1, rows[5], {"id": 1, "width": 777})])
    assert await index.count(1) == COUNT
    assert {id_ for id_, _ in await index.search(1, rows[0], COUNT, OneOf("width", (777,)))} == {1}
    assert 1 not in {id_ for id_, _ in await index.search(1, rows[0], COUNT, Present("format"))}
    scores = dict(await index.search(1, rows[5], COUNT))
    assert scores[1] == pytest.approx(scores[6])


async def test_a_payload_is_replaced_whole_and_only_where_there_is_a_point(index: VectorIndex) -> None:
    rows = await filled(index)
    await index.set_payload(1, {2: {"id": 2, "format": "gif"}, 10**9: {"id": 10**9, "format": "gif"}})
    assert await index.count(1) == COUNT
    assert {id_ for id_, _ in await index.search(1, rows[0], COUNT, OneOf("format", ("gif",)))} == {2}
    assert 2 not in {id_ for id_, _ in await index.search(1, rows[0], COUNT, Present("width"))}
    assert dict(await index.search(1, rows[1], COUNT))[2] == pytest.approx(1.0, abs=1e-3)


async def test_removal_reaches_every_generation_or_one(index: VectorIndex) -> None:
    await filled(index, 1)
    await filled(index, 2)
    await index.remove([1, 2, 10**9])
    assert (await index.count(1), await index.count(2)) == (COUNT - 2, COUNT - 2)
    await index.remove([3], 2)
    assert (await index.count(1), await index.count(2)) == (COUNT - 2, COUNT - 3)


async def test_stamps_come_in_the_order_of_ids(index: VectorIndex) -> None:
    await filled(index)
    await index.set_payload(1, {3: {"id": 3}})
    batches = [batch async for batch in index.stamps(1)]
    ids = np.concatenate([ids for ids, _ in batches])
    stamps = np.concatenate([stamps for _, stamps in batches])
    assert ids.tolist() == list(range(1, COUNT + 1))
    assert stamps.tolist() == [-1 if number == 2 else 1000 + number for number in range(COUNT)]


async def test_an_empty_generation_finds_nothing(index: VectorIndex) -> None:
    await index.ensure(1, DIM)
    assert await index.search(1, vectors(1)[0], 10) == []
    assert [batch async for batch in index.stamps(1)] == []
    assert await index.count(1) == 0


async def test_generations_come_and_go(index: VectorIndex) -> None:
    assert await index.present() == set()
    await filled(index, 1)
    await index.ensure(7, DIM * 2)
    await index.ensure(1, DIM)
    assert await index.present() == {1, 7}
    assert await index.count(1) == COUNT
    await index.drop(1)
    await index.drop(99)
    assert await index.present() == {7}
    with pytest.raises(VectorIndexUnavailable):
        await index.search(1, vectors(1)[0], 10)


async def test_a_server_that_is_away_is_said_to_be() -> None:
    away = QdrantVectorIndex(connect("http://127.0.0.1:9", timeout_s=1))
    with pytest.raises(VectorIndexUnavailable) as caught:
        await away.count(1)
    assert caught.value.status == 503
    await away.close()
