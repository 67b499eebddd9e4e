"""Makes the vector index what Postgres says, at every start: no command, no model, nothing lost.

First the ids are compared: pictures that the index lacks are added from their stored vectors (a deleted folder is built
anew this way), points whose picture is gone are removed. Then, behind the back of searches, the stamps are compared, so
that an edit whose crash came between the commit and the index is made good too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import structlog
from pixelgate_common.errors import Unavailable

from storage_service.database import Database
from storage_service.payloads import fetch_payload_rows, payload_of
from storage_service.vectors.halves import from_half
from storage_service.vectors.protocol import Ids, VectorIndex, VectorPoint

log = structlog.get_logger(__name__)
BATCH = 500
STAMP_BATCH = 100
PROGRESS_EVERY_S = 2.0


class IndexRebuilding(Unavailable):
    """The vector index lacks points that Postgres has; they are being added."""

    code, title = "index_rebuilding", "The vector index is being rebuilt"


class Reconciler:
    """One background task for all generations, the ones that searches wait for first."""

    def __init__(self, db: Database, index: VectorIndex, retry_s: float = 2.0) -> None:
        """Compare `db` with `index`; nothing happens before `start`. A store that is away is tried after `retry_s`."""
        self._db = db
        self._index = index
        self._retry_s = retry_s
        self._task: asyncio.Task[None] | None = None
        self._lacking: dict[int, tuple[int, int]] = {}  # generation -> (points added, points to add)
        self._awaited: frozenset[int] = frozenset()

    async def start(self, generation_ids: Sequence[int], awaited: Sequence[int], patience_s: float) -> None:
        """Begin with `generation_ids`, in this order; return when the `awaited` are complete, or after `patience_s`."""
        complete = asyncio.Event()
        self._lacking = dict.fromkeys(generation_ids, (0, 0))
        self._awaited = frozenset(awaited)
        self._task = asyncio.create_task(self._run(list(generation_ids), complete))
        try:
            async with asyncio.timeout(patience_s):
                await complete.wait()
        except TimeoutError:
            log.info("vector_index_rebuilding", generations=sorted(self._lacking))

    async def stop(self) -> None:
        """Stop; the next start goes on where this one was."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def settled(self) -> None:
        """Wait until everything has been compared."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def need_complete(self, generation_id: int) -> None:
        """Raise IndexRebuilding while the generation lacks points."""
        if generation_id in self._lacking:
            added, wanted = self._lacking[generation_id]
            raise IndexRebuilding(f"The vector index is being rebuilt: {added:,} of {wanted:,} vectors so far.")

    def check(self) -> None:
        """Raise IndexRebuilding while a generation that searches use lacks points."""
        for generation_id in self._awaited & self._lacking.keys():
            self.need_complete(generation_id)

    async def _run(self, generation_ids: list[int], complete: asyncio.Event) -> None:
        for generation_id in generation_ids:
            await self._until_done(self._compare_ids, generation_id)
            self._lacking.pop(generation_id, None)
            if not self._awaited & self._lacking.keys():
                complete.set()
        complete.set()
        for generation_id in generation_ids:
            await self._until_done(self._compare_stamps, generation_id)

    async def _until_done(self, step: Callable[[int], Awaitable[None]], generation_id: int) -> None:
        while True:
            try:
                return await step(generation_id)
            except Unavailable as error:
                log.warning("vector_reconcile_waits", generation=generation_id, why=error.detail)
                await asyncio.sleep(self._retry_s)
            except Exception:
                # Whatever it is, the process that serves searches must live on and say that this one is incomplete.
                log.exception("vector_reconcile_failed", generation=generation_id)
                await asyncio.sleep(self._retry_s * 10)

    async def _compare_ids(self, generation_id: int) -> None:
        here = await self._ids_in_index(generation_id)
        async with self._db.connection() as conn:
            rows = await conn.execute("SELECT image_id FROM vectors WHERE generation_id = %s", (generation_id,))
            there = np.array([image_id for (image_id,) in await rows.fetchall()], dtype=np.int64)
        missing, extra = np.setdiff1d(there, here), np.setdiff1d(here, there)
        if len(missing) or len(extra):
            log.info("vector_index_differs", generation=generation_id, missing=len(missing), extra=len(extra))
        for start in range(0, len(extra), BATCH):
            await self._remove_extra(generation_id, extra[start : start + BATCH].tolist())
        told = time.monotonic()
        for start in range(0, len(missing), BATCH):
            self._lacking[generation_id] = (start, len(missing))
            if time.monotonic() - told > PROGRESS_EVERY_S:
                told = time.monotonic()
                log.info("vector_index_rebuilding", generation=generation_id, added=start, wanted=len(missing))
            await self._upsert(generation_id, missing[start : start + BATCH].tolist())
        if len(missing):
            log.info("vector_index_rebuilt", generation=generation_id, added=len(missing))

    async def _ids_in_index(self, generation_id: int) -> Ids:
        parts = [ids async for ids, _ in self._index.stamps(generation_id)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    async def _remove_extra(self, generation_id: int, image_ids: list[int]) -> None:
        async with self._db.connection() as conn:
            # Whoever adds vectors holds the clock until its commit: with the lock, a point without a row has no owner.
            await conn.execute("SELECT seq FROM clock FOR UPDATE")
            rows = await conn.execute(
                "SELECT image_id FROM vectors WHERE generation_id = %s AND image_id = ANY(%s)",
                (generation_id, image_ids),
            )
            owned = {image_id for (image_id,) in await rows.fetchall()}
            await self._index.remove([id_ for id_ in image_ids if id_ not in owned], generation_id)

    async def _upsert(self, generation_id: int, image_ids: list[int]) -> None:
        async with self._db.connection() as conn:
            pictures = await fetch_payload_rows(conn, image_ids, locked=True)
            rows = await conn.execute(
                "SELECT image_id, seq, vector FROM vectors WHERE generation_id = %s AND image_id = ANY(%s)",
                (generation_id, image_ids),
            )
            points = [
                VectorPoint(image_id, from_half(vector), payload_of(pictures[image_id], seq))
                for image_id, seq, vector in await rows.fetchall()
                if image_id in pictures
            ]
            await self._index.upsert(generation_id, points)

    async def _compare_stamps(self, generation_id: int) -> None:
        refreshed = 0
        async for ids, stamps in self._index.stamps(generation_id):
            for start in range(0, len(ids), STAMP_BATCH):
                here = dict(zip(ids[start : start + STAMP_BATCH].tolist(), stamps[start:].tolist(), strict=False))
                stale = await self._stale(generation_id, here)
                if stale:
                    await self._upsert(generation_id, stale)
                    refreshed += len(stale)
                # Nobody waits for this, so it takes no more than a part of the processor.
                await asyncio.sleep(0.01)
        if refreshed:
            log.info("vector_payloads_refreshed", generation=generation_id, points=refreshed)

    async def _stale(self, generation_id: int, stamps: dict[int, int]) -> list[int]:
        async with self._db.connection() as conn:
            pictures = await fetch_payload_rows(conn, list(stamps))
            rows = await conn.execute(
                "SELECT image_id, seq FROM vectors WHERE generation_id = %s AND image_id = ANY(%s)",
                (generation_id, list(stamps)),
            )
            seqs = await rows.fetchall()
        return [
            image_id
            for image_id, seq in seqs
            if image_id in pictures and payload_of(pictures[image_id], seq)["stamp"] != stamps[image_id]
        ]
