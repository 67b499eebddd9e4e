"""The vector index of one machine: Qdrant's own engine in this process, one shard folder for each generation.

Measured (docs/adr/0003-vector-index.md): comparing with every vector takes 0.4 ms at 10,000 and 6 ms at 100,000, so no
graph is built; `optimize()` would hold a shard for seconds to minutes. Vectors are kept as float16 under the dot
product: the values that stand in Postgres, bit by bit, in half the memory that float32 would take.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as qdrant
import structlog
from pixelgate_common.vectors import FloatVector

from storage_service.vectors import conditions
from storage_service.vectors.protocol import (
    PAYLOAD_FIELDS,
    FieldKind,
    Ids,
    Payload,
    VectorIndexUnavailable,
    VectorPoint,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")

CHUNK_POINTS = 8
"""Points written at once: about 1 ms, the longest that a search ever waits for a writer."""
SEARCHED_LATELY_S = 0.2
PAUSE_S = 0.003
"""While people search, a writer rests this long after each chunk: making points of payloads holds Python's lock."""
FLUSH_POINTS = 20_000
"""Points after which the write-ahead log is folded in; as many are replayed after a kill, in about 0.7 s."""
LARGE_POINTS = 300_000
"""Above this a search compares for some 20 ms or more, and a Qdrant server with its graph is the better place."""
_SCROLL = 5_000
_FOLDER = re.compile(r"gen-(\d+)")
_KINDS: dict[FieldKind, Any] = {
    "keyword": qdrant.PayloadSchemaType.Keyword,
    "integer": qdrant.PayloadSchemaType.Integer,
    "time": qdrant.PayloadSchemaType.Datetime,
}
# Far above any store: with it no call to the engine ever finds a segment that it would rather build a graph for.
_NEVER_INDEX_KB = 2**40


class EdgeVectorIndex:
    """Shards under one folder; one process at a time can have a shard open."""

    def __init__(self, folder: Path) -> None:
        """Keep the shards in `folder` (made when it is not there)."""
        self._folder = folder
        self._shards: dict[int, _Shard] = {}
        self._opening = asyncio.Lock()

    async def ensure(self, generation_id: int, dim: int) -> None:
        """Open the generation's shard, or make it; see `VectorIndex.ensure`."""
        async with self._opening:
            if generation_id not in self._shards:
                shard = _Shard(self._folder / f"gen-{generation_id}")
                await shard.open(dim)
                self._shards[generation_id] = shard
                if (points := await shard.run(_count)) > LARGE_POINTS:
                    log.warning("vector_index_large", generation=generation_id, points=points, advice="set QDRANT_URL")

    async def drop(self, generation_id: int) -> None:
        """Remove the shard's folder; see `VectorIndex.drop`."""
        async with self._opening:
            if (shard := self._shards.pop(generation_id, None)) is not None:
                await shard.close()
            await asyncio.to_thread(shutil.rmtree, self._folder / f"gen-{generation_id}", True)

    async def upsert(self, generation_id: int, points: Sequence[VectorPoint]) -> None:
        """Write in small chunks, between which searches get their turn; see `VectorIndex.upsert`."""
        shard = self._shard(generation_id)
        for start in range(0, len(points), CHUNK_POINTS):
            await shard.write(_upsert, points[start : start + CHUNK_POINTS])

    async def set_payload(self, generation_id: int, payloads: Mapping[int, Payload]) -> None:
        """See `VectorIndex.set_payload`."""
        shard = self._shard(generation_id)
        items = list(payloads.items())
        for start in range(0, len(items), CHUNK_POINTS):
            await shard.write(_set_payload, items[start : start + CHUNK_POINTS])

    async def remove(self, image_ids: Collection[int], generation_id: int | None = None) -> None:
        """See `VectorIndex.remove`."""
        ids = list(image_ids)
        for shard in list(self._shards.values()) if generation_id is None else [self._shard(generation_id)]:
            for start in range(0, len(ids), 1000):
                await shard.write(_remove, ids[start : start + 1000])

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
        return await self._shard(generation_id).search(vector, limit, condition, exact)

    async def count(self, generation_id: int) -> int:
        """See `VectorIndex.count`."""
        return await self._shard(generation_id).run(_count)

    async def stamps(self, generation_id: int) -> AsyncIterator[tuple[Ids, Ids]]:
        """See `VectorIndex.stamps`."""
        shard, offset = self._shard(generation_id), None
        while True:
            ids, stamps, offset = await shard.run(_scroll, offset)
            if len(ids):
                yield ids, stamps
            if offset is None:
                return

    async def present(self) -> set[int]:
        """See `VectorIndex.present`."""
        return await asyncio.to_thread(_folders, self._folder)

    async def close(self) -> None:
        """See `VectorIndex.close`."""
        async with self._opening:
            shards, self._shards = self._shards, {}
            for shard in shards.values():
                await shard.close()

    async def indexed_fields(self, generation_id: int) -> set[str]:
        """Return the payload fields that the generation has an index for."""
        return await self._shard(generation_id).run(lambda shard: set(shard.info().payload_schema))

    def _shard(self, generation_id: int) -> _Shard:
        try:
            return self._shards[generation_id]
        except KeyError:
            raise VectorIndexUnavailable(f"Generation {generation_id} is not open in the vector index.") from None


class _Shard:
    """One shard and the one thread in which everything is done with it, first come first served.

    A second thread for searches gained nothing when it was measured, and made both sides slower.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.name)
        # Folding the log in takes 0.1–0.3 s; the engine can do it beside searches, so it does not queue with them.
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix=f"{path.name}-flush")
        self._shard: Any = None
        self._unflushed = 0
        self._searched_at = -SEARCHED_LATELY_S
        self._flushing: asyncio.Task[None] | None = None

    async def open(self, dim: int) -> None:
        self._shard = await self._in(self._thread, _open, self._path, dim)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        return await self._in(self._thread, call, self._shard, *args)

    async def search(self, *args: Any) -> list[tuple[int, float]]:
        self._searched_at = time.monotonic()
        return await self.run(_search, *args)

    async def write(self, call: Callable[..., int], *args: Any) -> None:
        self._unflushed += await self.run(call, *args)
        if time.monotonic() - self._searched_at < SEARCHED_LATELY_S:
            await asyncio.sleep(PAUSE_S)
        if self._unflushed >= FLUSH_POINTS and self._flushing is None:
            self._unflushed = 0
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            await self._in(self._flusher, self._shard.flush)
        except VectorIndexUnavailable:
            # Nothing is lost: what was written stands in the log, and the next flush or start folds it in.
            log.exception("vector_flush_failed", shard=self._path.name)
        finally:
            self._flushing = None

    async def close(self) -> None:
        if self._flushing is not None:
            await self._flushing
        if self._shard is not None:
            await self._in(self._thread, self._shard.close)  # flushes
            self._shard = None
        self._thread.shutdown(wait=False)
        self._flusher.shutdown(wait=False)

    async def _in(self, thread: ThreadPoolExecutor, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, _guarded, call, args)


def _guarded(call: Callable[..., T], args: tuple[Any, ...]) -> T:
    try:
        return call(*args)
    except VectorIndexUnavailable:
        raise
    except BaseException as error:
        # The engine raises bare Exceptions, and its panics are BaseExceptions of a class that cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise VectorIndexUnavailable(f"The vector index broke off: {error}") from error
        raise


def _folders(folder: Path) -> set[int]:
    if not folder.is_dir():
        return set()
    return {int(match[1]) for entry in folder.iterdir() if (match := _FOLDER.fullmatch(entry.name))}


def _open(path: Path, dim: int) -> Any:
    config = qdrant.EdgeConfig(
        vectors=qdrant.EdgeVectorParams(
            size=dim, distance=qdrant.Distance.Dot, datatype=qdrant.VectorStorageDatatype.Float16
        ),
        optimizers=qdrant.EdgeOptimizersConfig(indexing_threshold=_NEVER_INDEX_KB),
    )
    if path.exists():
        try:
            shard = qdrant.EdgeShard.load(str(path), config)
        except Exception as error:
            if "WouldBlock" in str(error):
                raise VectorIndexUnavailable(f"{path} is in use by another process.") from error
            # Postgres has every vector, so what cannot be read is set aside and built anew; it is kept for a look.
            aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
            log.error("vector_shard_unreadable", shard=path.name, moved_to=aside.name, error=str(error))
            path.rename(aside)
    if not path.exists():
        path.mkdir(parents=True)
        shard = qdrant.EdgeShard.create(str(path), config)
    present = shard.info().payload_schema
    for field, kind in PAYLOAD_FIELDS.items():
        if field not in present:
            shard.update(qdrant.UpdateOperation.create_field_index(field, _KINDS[kind]))
    return shard


def _upsert(shard: Any, points: Sequence[VectorPoint]) -> int:
    shard.update(
        qdrant.UpdateOperation.upsert_points(
            [qdrant.Point(point.image_id, point.vector.tolist(), point.payload) for point in points]
        )
    )
    return len(points)


def _set_payload(shard: Any, items: Sequence[tuple[int, Payload]]) -> int:
    for image_id, payload in items:
        # By filter, because by id a picture without a point is an error.
        only = qdrant.Filter(must=[qdrant.HasIdCondition({image_id})])
        shard.update(qdrant.UpdateOperation.overwrite_payload_by_filter(only, payload))
    return len(items)


def _remove(shard: Any, ids: list[Any]) -> int:
    shard.update(qdrant.UpdateOperation.delete_points(ids))
    return len(ids)


def _search(
    shard: Any, vector: FloatVector, limit: int, condition: conditions.Condition | None, exact: bool
) -> list[tuple[int, float]]:
    found = shard.search(
        qdrant.SearchRequest(
            query=qdrant.Query.Nearest(vector.tolist()),
            limit=limit,
            filter=None if condition is None else qdrant.Filter(must=[_compile(condition)]),
            params=qdrant.SearchParams(exact=exact),
            with_payload=False,
            with_vector=False,
        )
    )
    return [(point.id, point.score) for point in found]


def _count(shard: Any) -> int:
    return int(shard.count(qdrant.CountRequest(exact=True)))


def _scroll(shard: Any, offset: int | None) -> tuple[Ids, Ids, int | None]:
    records, following = shard.scroll(
        qdrant.ScrollRequest(offset=offset, limit=_SCROLL, with_payload=["stamp"], with_vector=False)
    )
    ids = np.fromiter((record.id for record in records), np.int64, len(records))
    stamps = np.fromiter((record.payload.get("stamp", -1) for record in records), np.int64, len(records))
    return ids, stamps, following


def _compile(condition: conditions.Condition) -> Any:
    match condition:
        case conditions.OneOf(field, values):
            wanted: Any = list(values)
            return qdrant.FieldCondition(field, match=qdrant.MatchAny(wanted))
        case conditions.Between(field, low, high):
            return qdrant.FieldCondition(field, range=qdrant.RangeFloat(gte=low, lte=high))
        case conditions.During(field, gt, gte, lt, lte):
            return qdrant.FieldCondition(field, range=qdrant.RangeDateTime(gt=gt, gte=gte, lt=lt, lte=lte))
        case conditions.Present(field):
            return qdrant.Filter(must_not=[qdrant.IsEmptyCondition(field)])
        case conditions.IdIn(image_ids):
            return qdrant.HasIdCondition(set(image_ids))
        case conditions.Not(part):
            return qdrant.Filter(must_not=[_compile(part)])
        case conditions.And(parts):
            return qdrant.Filter(must=[_compile(part) for part in parts])
        case conditions.Or(()):
            return qdrant.HasIdCondition(set())  # the engine takes an empty `should` for no condition at all
        case conditions.Or(parts):
            return qdrant.Filter(should=[_compile(part) for part in parts])
