"""How the file of a cutout comes in: before its result, under the lease that the result will carry.

The order of writes, and what a crash after each step leaves behind:
1. the object, under the advisory lock of the hash     a file that is not shown, or of which the tag is out of date:
                                                       the lease runs out, and the next attempt puts it again;
2. its digest and the lease's token, in one commit     a file that is not shown (or the same anew);
3. the result (`results`)                              everything.
The picture's row is held meanwhile, so that a deletion comes after this and removes the file with the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from pixelgate_common.errors import BodyTooLarge, Conflict, NotFound
from pixelgate_common.images import DecodeLimits, decode

from storage_service.arrival import Arrivals, lock_hash
from storage_service.database import Connection, Database
from storage_service.decoders import Decoders
from storage_service.objects.protocol import NewObject, ObjectStore, object_key
from storage_service.records import CUTOUT_MEDIA_TYPE


class LeaseGone(Conflict):
    """The lease under which something is handed in is over, or is somebody else's."""

    code, title = "lease_gone", "The lease is over"


class Cutouts:
    """Takes the files of cutouts in."""

    def __init__(
        self, db: Database, objects: ObjectStore, decoders: Decoders, arrivals: Arrivals, *, limits: DecodeLimits
    ) -> None:
        """Take files within `limits`, which name PNG as the only format; count them together with `arrivals`."""
        self._db, self._objects, self._decoders, self._arrivals = db, objects, decoders, arrivals
        self._limits = limits

    async def put(
        self, image_id: int, token: str, body: AsyncIterator[bytes], declared_bytes: int | None = None
    ) -> None:
        """Keep `body` as the picture's cutout.

        NotFound without such a picture; LeaseGone unless `token` is that of a lease which holds; BodyTooLarge,
        Overloaded, OutOfSpace, Unavailable, and what the safe decode raises for anything that is no whole PNG.
        """
        if declared_bytes is not None:
            self._check_size(declared_bytes)
        async with self._db.connection() as conn:
            sha256 = await _leased(conn, image_id, token)
        async with self._arrivals.workplace() as folder:
            file = await self._arrivals.receive(body, folder / "cutout", self._check_size)
            await self._decoders.run(prove, file.path, self._limits)
            async with self._db.connection() as conn:
                await lock_hash(conn, sha256)
                await _leased(conn, image_id, token, "FOR NO KEY UPDATE OF i")
                await self._objects.put([NewObject(object_key(sha256, "cutout"), file.path, CUTOUT_MEDIA_TYPE)])
                await conn.execute(
                    "UPDATE images SET cutout_digest = %s, cutout_token = %s WHERE id = %s",
                    (file.sha256, token, image_id),
                )

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise BodyTooLarge(
                f"A cutout may have at most {self._limits.max_bytes:,} bytes (PIXELGATE_STORAGE_MAX_CUTOUT_MB)."
            )


def prove(path: Path, limits: DecodeLimits) -> None:
    """Decode the file at `path` whole, in a child process; raises what `pixelgate_common.images.decode` raises."""
    decode(path, limits, mode="RGBA")


async def _leased(conn: Connection, image_id: int, token: str, lock: str = "") -> bytes:
    """Return the picture's hash; NotFound without one, LeaseGone unless `token` holds the stage `cutout` of it."""
    row = await (
        await conn.execute(
            "SELECT i.sha256, a.token::text FROM images i"
            " LEFT JOIN analyses a ON a.image_id = i.id AND a.stage = 'cutout' AND a.state = 'running'"
            f" WHERE i.id = %s {lock}".encode(),
            (image_id,),
        )
    ).fetchone()
    if row is None:
        raise NotFound(f"There is no picture {image_id}.")
    if row[1] != token:
        raise LeaseGone(f"No lease of the cutout of picture {image_id} has this token (any more).")
    return bytes(row[0])
