"""How a picture comes in: streamed to disk, proved in a child process, stored whole or not at all.

The order of writes, and what a crash after each step leaves behind:
1. the body, into this process's own folder below `tmp`     garbage there, removed by the next start;
2. variants beside it, by the child                         the same;
3. objects, under the advisory lock of the hash             garbage objects, overwritten when the picture comes again;
4. the picture's row and its analyses, in one commit        everything.
So a row never stands without its objects. The lock is held from the second look for the hash until the commit: of
identical arrivals one creates, and no removal can take away objects that are just being put (`removal`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

import structlog
from pixelgate_common.contracts.storage import Arrival, Arrived
from pixelgate_common.errors import BodyTooLarge, NotFound, OutOfSpace, Overloaded
from pixelgate_common.images import DecodeLimits
from psycopg.types.json import Jsonb

from storage_service.database import Connection, Database
from storage_service.decoders import Decoders
from storage_service.duplicates import AFTER_ARRIVAL_S, MARK_DUE
from storage_service.objects.protocol import NewObject, ObjectStore, object_key
from storage_service.pictures import Processed, process
from storage_service.records import VARIANT_MEDIA_TYPES, fetch_record, find_by_sha256

log = structlog.get_logger(__name__)
_WRITE_BYTES = 1 << 20  # one hop to a thread for so much of the body, which is then written and hashed there
_RUN_PREFIX = "arrivals-"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Body:
    """A body that has come in whole."""

    path: Path
    sha256: bytes
    size: int


class Arrivals:
    """Takes pictures in, a bounded number at a time."""

    def __init__(
        self,
        db: Database,
        objects: ObjectStore,
        decoders: Decoders,
        *,
        folder: Path,
        limits: DecodeLimits,
        max_waiting: int,
    ) -> None:
        """Keep bodies below `folder` while they come in; take one for each decoder at once, and `max_waiting` more."""
        self._db, self._objects, self._decoders, self._limits = db, objects, decoders, limits
        self._room = decoders.count + max_waiting
        self._under_way = 0
        self._run = folder / f"{_RUN_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self._lock: BinaryIO | None = None
        self._same: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def start(self) -> None:
        """Make this process's folder, and remove those of processes that are no more."""
        self._lock = await asyncio.to_thread(_open_run, self._run)

    async def close(self) -> None:
        """Remove this process's folder."""
        await asyncio.to_thread(shutil.rmtree, self._run, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    async def take(self, body: AsyncIterator[bytes], arrival: Arrival, declared_bytes: int | None = None) -> Arrived:
        """Store the picture that `body` streams, unless its SHA-256 is known.

        Raises Overloaded, BodyTooLarge, OutOfSpace, Unavailable, and what `pictures.process` raises; nothing is stored
        then.
        """
        if declared_bytes is not None:
            self._check_size(declared_bytes)
        async with self.workplace() as folder:
            body_path = folder / "original"
            return await self._take(await self.receive(body, body_path, self._check_size), folder, arrival)

    @asynccontextmanager
    async def workplace(self) -> AsyncIterator[Path]:
        """Lend a folder of its own for one body and what is made of it; Overloaded when too many are at work."""
        if self._under_way >= self._room:
            raise Overloaded(f"{self._room} pictures are being taken in already (PIXELGATE_STORAGE_MAX_WAITING).")
        self._under_way += 1
        folder = self._run / secrets.token_hex(8)
        try:
            folder.mkdir()
            yield folder
        except OSError as error:
            if error.errno in _FULL:
                raise OutOfSpace("The disk that keeps arriving pictures is full (PIXELGATE_DATA_DIR).") from error
            raise
        finally:
            self._under_way -= 1
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise BodyTooLarge(
                f"A picture may have at most {self._limits.max_bytes:,} bytes (PIXELGATE_MAX_UPLOAD_MB)."
            )

    async def receive(self, body: AsyncIterator[bytes], path: Path, check_size: Callable[[int], None]) -> Body:
        """Write `body` to `path` while hashing it; `check_size` raises when it is too much."""
        digest, size, waiting = hashlib.sha256(), 0, bytearray()
        with path.open("xb", buffering=0) as file:

            def keep(data: bytes) -> None:
                digest.update(data)
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]

            async for chunk in body:
                size += len(chunk)
                check_size(size)
                waiting += chunk
                if len(waiting) >= _WRITE_BYTES:
                    await asyncio.to_thread(keep, bytes(waiting))
                    waiting.clear()
            await asyncio.to_thread(keep, bytes(waiting))
        return Body(path, digest.digest(), size)

    async def _take(self, body: Body, folder: Path, arrival: Arrival) -> Arrived:
        # Identical pictures wait for the first one here, before the decoder, and then find it stored.
        lock = self._same.setdefault(body.sha256, asyncio.Lock())
        async with lock:
            async with self._db.connection() as conn:
                known = await find_by_sha256(conn, body.sha256)
            if known is not None:
                return await self._arrived("duplicate", known)
            processed = await self._decoders.run(process, body.path, folder, self._limits)
            image_id, created = await self._store(body, processed, arrival)
        return await self._arrived("created" if created else "duplicate", image_id)

    async def _store(self, body: Body, processed: Processed, arrival: Arrival) -> tuple[int, bool]:
        """Put the objects and write the rows; return the picture's id and whether it is new."""
        variant_type = VARIANT_MEDIA_TYPES[processed.has_alpha]
        objects = [
            NewObject(object_key(body.sha256, "original"), body.path, processed.media_type),
        ]
        for name, path in processed.variants.items():
            objects.append(NewObject(object_key(body.sha256, name), path, variant_type))
        async with self._db.connection() as conn:
            await lock_hash(conn, body.sha256)
            known = await find_by_sha256(conn, body.sha256)
            if known is not None:
                return known, False
            await self._objects.put(objects)
            return await _insert(conn, body, processed, arrival), True

    async def _arrived(self, outcome: str, image_id: int) -> Arrived:
        async with self._db.connection() as conn:
            record = await fetch_record(conn, image_id)
        if record is None:
            raise NotFound("The picture was deleted while it arrived again; send it once more.")
        return Arrived(outcome="created" if outcome == "created" else "duplicate", image=record)


async def lock_hash(conn: Connection, sha256: bytes) -> None:
    """Wait until this transaction is the only one that stores or removes the objects of `sha256`."""
    await conn.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(sha256[:8], "big", signed=True),))


async def _insert(conn: Connection, body: Body, processed: Processed, arrival: Arrival) -> int:
    # From here to the commit every other writer waits for the clock: the work is done, only rows are missing.
    tick = await (await conn.execute("UPDATE clock SET seq = seq + 1 RETURNING seq")).fetchone()
    assert tick is not None
    row = await (
        await conn.execute(
            "INSERT INTO images (seq, sha256, filename, media_type, format, width, height, bytes, has_alpha,"
            " captured_at, source_url, page_url, page_title, alt_text, tags, attributes, exif, phash, thumbhash)"
            " VALUES (%(seq)s, %(sha256)s, %(filename)s, %(media_type)s, %(format)s, %(width)s, %(height)s, %(bytes)s,"
            " %(has_alpha)s, %(captured_at)s, %(source_url)s, %(page_url)s, %(page_title)s, %(alt_text)s, %(tags)s,"
            " %(attributes)s, %(exif)s, %(phash)s, %(thumbhash)s) RETURNING id",
            {
                "seq": tick[0],
                "sha256": body.sha256,
                "filename": _plain_name(arrival.filename),
                "media_type": processed.media_type,
                "format": processed.format,
                "width": processed.width,
                "height": processed.height,
                "bytes": body.size,
                "has_alpha": processed.has_alpha,
                "captured_at": processed.captured_at,
                "source_url": arrival.source_url,
                "page_url": arrival.page_url,
                "page_title": arrival.page_title,
                "alt_text": arrival.alt_text,
                "tags": arrival.tags,
                "attributes": Jsonb(arrival.attributes),
                "exif": Jsonb(processed.exif),
                "phash": processed.phash,
                "thumbhash": processed.thumbhash,
            },
        )
    ).fetchone()
    assert row is not None
    # Read after the clock was taken: a stage that is being switched on (`stages.enable_stages`) has either been
    # committed and is seen here, or sees this picture.
    await conn.execute(
        "INSERT INTO analyses (image_id, stage) SELECT %s, stage FROM stages WHERE enabled AND automatic", (row[0],)
    )
    await conn.execute(MARK_DUE, (AFTER_ARRIVAL_S, [row[0]]))
    return int(row[0])


def _plain_name(filename: str | None) -> str | None:
    """Return the last part of what the sender calls the file, without unprintable characters; None for nothing."""
    if filename is None:
        return None
    return _UNPRINTABLE.sub("", filename.replace("\\", "/").rsplit("/", 1)[-1]).strip() or None


def _open_run(run: Path) -> BinaryIO:
    """Make the folder `run`, locked for as long as this process lives; remove the folders that nobody holds."""
    run.mkdir(parents=True)
    lock = _lock_of(run)
    assert lock is not None
    for other in run.parent.glob(f"{_RUN_PREFIX}*"):
        if other == run:
            continue
        held = _lock_of(other)
        if held is not None:
            log.info("leftovers_removed", folder=other.name)
            shutil.rmtree(other, ignore_errors=True)
            held.close()
    return lock


def _lock_of(run: Path) -> BinaryIO | None:
    """Return the lock of a run's folder, None while its process lives; it ends with its process, whatever ends that."""
    try:
        file = (run / ".lock").open("ab")
    except OSError:  # a folder that another start is removing just now
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
