"""How a picture goes: its row first, then its points in the vector index and its objects.

The row goes together with a note of what is left to remove, in one transaction: from then on nobody finds it.
The rest is done before the deletion is answered, or, when a store is away, again and again until it is done.
Objects go under the advisory lock of their hash, and only while no picture has that hash: a picture that is uploaded
again in the meantime keeps its files.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import get_args

import structlog
from pixelgate_common.contracts.storage import Variant
from pixelgate_common.errors import NotFound, PixelgateError

from storage_service.arrival import lock_hash
from storage_service.database import Database
from storage_service.duplicates import lock_groups, peers_of, regroup
from storage_service.generations import Generations
from storage_service.objects.protocol import ObjectStore, object_key
from storage_service.records import find_by_sha256

log = structlog.get_logger(__name__)


class Removals:
    """Deletes pictures, and works off what earlier deletions left."""

    def __init__(self, db: Database, generations: Generations, objects: ObjectStore, *, every_s: float = 30.0) -> None:
        """Remove from all three stores; look for what is left at the start and `every_s` seconds."""
        self._db, self._generations, self._objects, self._every_s = db, generations, objects, every_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work off what is left, in the background."""
        self._task = asyncio.create_task(self._keep_at_it(), name="removals")

    async def close(self) -> None:
        """Stop; what is left stays noted."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def delete(self, image_id: int) -> None:
        """Delete a picture; NotFound when there is none. Its objects may go a little later when a store is away."""
        async with self._db.connection() as conn:
            # Before any row, as everybody does who changes groups; then those that it held together are made anew.
            await lock_groups(conn)
            peers = await peers_of(conn, image_id)
            row = await (
                await conn.execute(
                    "WITH gone AS (DELETE FROM images WHERE id = %s RETURNING id, sha256)"
                    " INSERT INTO removals (image_id, sha256) SELECT id, sha256 FROM gone RETURNING id",
                    (image_id,),
                )
            ).fetchone()
            if peers:
                await regroup(conn, peers)
        if row is None:
            raise NotFound(f"There is no picture {image_id}.")
        try:
            await self._remove(int(row[0]))
        except PixelgateError as error:
            log.warning("removal_postponed", image_id=image_id, why=error.detail)

    async def work_off(self) -> int:
        """Do what is left of all deletions; return how many are still left because a store refused."""
        left = 0
        last = 0
        while True:
            async with self._db.connection() as conn:
                rows = await conn.execute("SELECT id FROM removals WHERE id > %s ORDER BY id LIMIT 100", (last,))
                batch = [int(row[0]) for row in await rows.fetchall()]
            if not batch:
                return left
            for removal_id in batch:
                try:
                    await self._remove(removal_id)
                except PixelgateError as error:
                    left += 1
                    log.warning("removal_postponed", removal=removal_id, why=error.detail)
            last = batch[-1]

    async def _remove(self, removal_id: int) -> None:
        async with self._db.connection() as conn:
            row = await (
                await conn.execute(
                    "SELECT image_id, sha256 FROM removals WHERE id = %s FOR UPDATE SKIP LOCKED", (removal_id,)
                )
            ).fetchone()
            if row is None:  # somebody else does it, or has done it
                return
            image_id, sha256 = int(row[0]), bytes(row[1])
            await self._generations.remove([image_id])
            await lock_hash(conn, sha256)
            if await find_by_sha256(conn, sha256) is None:
                await self._objects.delete([object_key(sha256, variant) for variant in get_args(Variant)])
            await conn.execute("DELETE FROM removals WHERE id = %s", (removal_id,))

    async def _keep_at_it(self) -> None:
        while True:
            try:
                await self.work_off()
            except PixelgateError as error:
                log.warning("removals_stopped", why=error.detail)
            except Exception as error:  # a loop that ends would leave removals undone until the next start
                log.error("removals_failed", exc_info=error)
            await asyncio.sleep(self._every_s)
