"""The vector index on a Qdrant server: one collection for each generation, sharded and replicated as the server is set.

Above some 10,000 points the server builds its graph by itself, in its own threads. Everything else is as in `edge.py`:
float16 under the dot product, an index for every payload field made together with the collection.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
from pixelgate_common.vectors import FloatVector
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from storage_service.vectors import conditions
from storage_service.vectors.protocol import (
    PAYLOAD_FIELDS,
    FieldKind,
    Ids,
    Payload,
    VectorIndexUnavailable,
    VectorPoint,
)

T = TypeVar("T")
CHUNK_POINTS = 128
"""Points in one request: about 1 MB of JSON at 512 values each."""
SEARCH_EF = 128
"""How wide the server looks in its graph at least; its default is 100, and a wider look costs little."""
_SCROLL = 5_000
_KINDS: dict[FieldKind, models.PayloadSchemaType] = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "time": models.PayloadSchemaType.DATETIME,
}


def connect(url: str, api_key: str | None = None, timeout_s: int = 30) -> AsyncQdrantClient:
    """Return a client of the server at `url`; nothing is sent yet."""
    # The check of versions would be a blocking request here, and its only answer a warning.
    return AsyncQdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)


class QdrantVectorIndex:
    """Collections named `<prefix>-gen-<id>`."""

    def __init__(self, client: AsyncQdrantClient, prefix: str = "pixelgate") -> None:
        """Use `client`, which is closed with this; a server may hold several installations under different names."""
        self._client = client
        self._prefix = prefix

    async def ensure(self, generation_id: int, dim: int) -> None:
        """Make the collection or complete it; see `VectorIndex.ensure`."""
        name = self._name(generation_id)
        with _wrapped():
            if not await self._client.collection_exists(name):
                await self._create(name, dim)
            present = (await self._client.get_collection(name)).payload_schema
            for field, kind in PAYLOAD_FIELDS.items():
                if field not in present:
                    await self._client.create_payload_index(name, field, _KINDS[kind], wait=True)

    async def _create(self, name: str, dim: int) -> None:
        vectors = models.VectorParams(size=dim, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16)
        try:
            await self._client.create_collection(name, vectors_config=vectors)
        except UnexpectedResponse as error:
            if error.status_code != 409:  # another process has just made it
                raise

    async def drop(self, generation_id: int) -> None:
        """See `VectorIndex.drop`."""
        with _wrapped():
            await self._client.delete_collection(self._name(generation_id))

    async def upsert(self, generation_id: int, points: Sequence[VectorPoint]) -> None:
        """See `VectorIndex.upsert`."""
        with _wrapped():
            for start in range(0, len(points), CHUNK_POINTS):
                structs = [
                    models.PointStruct(id=point.image_id, vector=point.vector.tolist(), payload=point.payload)
                    for point in points[start : start + CHUNK_POINTS]
                ]
                await self._client.upsert(self._name(generation_id), structs, wait=True)

    async def set_payload(self, generation_id: int, payloads: Mapping[int, Payload]) -> None:
        """See `VectorIndex.set_payload`."""
        # By filter, because by id a picture without a point is an error.
        operations: list[models.UpdateOperation] = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(
                    payload=payload, filter=models.Filter(must=[models.HasIdCondition(has_id=[image_id])])
                )
            )
            for image_id, payload in payloads.items()
        ]
        with _wrapped():
            for start in range(0, len(operations), CHUNK_POINTS):
                batch = operations[start : start + CHUNK_POINTS]
                await self._client.batch_update_points(self._name(generation_id), batch, wait=True)

    async def remove(self, image_ids: Collection[int], generation_id: int | None = None) -> None:
        """See `VectorIndex.remove`."""
        generations = await self.present() if generation_id is None else {generation_id}
        selector = models.PointIdsList(points=list(image_ids))
        with _wrapped():
            for one in generations:
                await self._client.delete(self._name(one), selector, wait=True)

    async def search(
        self,
        generation_id: int,
        vector: FloatVector,
        limit: int,
        condition: conditions.Condition | None = None,
        *,
        exact: bool = False,
    ) -> list[tuple[int, float]]:
        """See `VectorIndex.search`."""
        with _wrapped():
            found = await self._client.query_points(
                self._name(generation_id),
                query=vector.tolist(),
                limit=limit,
                query_filter=None if condition is None else models.Filter(must=[_compile(condition)]),
                search_params=models.SearchParams(exact=exact, hnsw_ef=max(SEARCH_EF, limit)),
                with_payload=False,
                with_vectors=False,
            )
        return [(_id_of(point), point.score) for point in found.points]

    async def count(self, generation_id: int) -> int:
        """See `VectorIndex.count`."""
        with _wrapped():
            return (await self._client.count(self._name(generation_id), exact=True)).count

    async def stamps(self, generation_id: int) -> AsyncIterator[tuple[Ids, Ids]]:
        """See `VectorIndex.stamps`."""
        offset: Any = None
        while True:
            with _wrapped():
                records, offset = await self._client.scroll(
                    self._name(generation_id), limit=_SCROLL, offset=offset, with_payload=["stamp"], with_vectors=False
                )
            if records:
                ids = np.fromiter((_id_of(record) for record in records), np.int64, len(records))
                given = ((record.payload or {}).get("stamp", -1) for record in records)
                yield ids, np.fromiter(given, np.int64, len(records))
            if offset is None:
                return

    async def present(self) -> set[int]:
        """See `VectorIndex.present`."""
        pattern = re.compile(rf"{re.escape(self._prefix)}-gen-(\d+)")
        with _wrapped():
            collections = (await self._client.get_collections()).collections
        return {int(match[1]) for one in collections if (match := pattern.fullmatch(one.name))}

    async def close(self) -> None:
        """See `VectorIndex.close`."""
        await self._client.close()

    async def indexed_fields(self, generation_id: int) -> set[str]:
        """Return the payload fields that the generation has an index for."""
        with _wrapped():
            return set((await self._client.get_collection(self._name(generation_id))).payload_schema)

    def _name(self, generation_id: int) -> str:
        return f"{self._prefix}-gen-{generation_id}"


@contextmanager
def _wrapped() -> Iterator[None]:
    """Turn whatever the client raises into VectorIndexUnavailable."""
    try:
        yield
    except (ApiException, httpx.HTTPError, ValueError) as error:
        # A collection that is missing is a ValueError in the client's own mode without a server.
        raise VectorIndexUnavailable(f"Qdrant does not do what it was asked: {error}") from error


def _id_of(point: models.ScoredPoint | models.Record) -> int:
    return int(point.id)


def _compile(condition: conditions.Condition) -> Any:
    match condition:
        case conditions.OneOf(field, values):
            wanted: Any = list(values)
            return models.FieldCondition(key=field, match=models.MatchAny(any=wanted))
        case conditions.Between(field, low, high):
            return models.FieldCondition(key=field, range=models.Range(gte=low, lte=high))
        case conditions.During(field, gt, gte, lt, lte):
            bounds: Any = {"gt": gt, "gte": gte, "lt": lt, "lte": lte}
            return models.FieldCondition(key=field, range=models.DatetimeRange(**bounds))
        case conditions.Present(field):
            return models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key=field))])
        case conditions.IdIn(image_ids):
            return models.HasIdCondition(has_id=list(image_ids))
        case conditions.Not(part):
            return models.Filter(must_not=[_compile(part)])
        case conditions.And(parts):
            return models.Filter(must=[_compile(part) for part in parts])
        case conditions.Or(()):
            return models.HasIdCondition(has_id=[])  # an empty `should` is no condition at all
        case conditions.Or(parts):
            return models.Filter(should=[_compile(part) for part in parts])
