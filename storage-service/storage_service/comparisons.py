"""Finds the duplicates of each picture: candidates by hash and by vectors, then their pixels laid over each other.

What is due stands in `duplicates_due`, written with the picture and again with each of its vectors; its row goes in the
transaction that writes what was found. A crash in between means that the same is found again. One process of all does
this at a time, a few pictures in a row, and rests as long as it has worked: people's requests come first. The pixels
are compared in a child process of the lowest priority.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from pixelgate_common.contracts.storage import Tier
from pixelgate_common.errors import PixelgateError
from pixelgate_common.images import BrokenImage

from storage_service.database import Connection, Database
from storage_service.decoders import Decoders
from storage_service.duplicates import lock_groups, regroup
from storage_service.generations import Generation, Generations
from storage_service.objects.protocol import ObjectMissing, ObjectStore, object_key
from storage_service.sameness import LEAST_OVERLAP, METHOD, compare_files
from storage_service.stages import ranges_of_images
from storage_service.vectors.halves import from_half

log = structlog.get_logger(__name__)
_LOCK = 0x636F6D70  # held by the process that compares
BATCH = 32
NEIGHBOURS = 16
"""Nearest pictures of each space that are candidates."""
MOST_COMPARED = 24
"""Candidates whose pixels are compared, the most promising ones."""
CANDIDATE_BITS, CANDIDATE_COSINE = 14, 0.85
"""Differing bits of the hash, and cosine, up to and from which it is worth looking at the pixels."""
SIMILAR_BITS = 6
HASH = "phash:1"
POSTPONED_S = 600.0
_STRETCH = 1.02 / LEAST_OVERLAP
"""How far a crop can change the ratio of the sides."""


@dataclass(frozen=True)
class _Picture:
    """What is known of a picture before its pixels are looked at."""

    id: int
    sha256: bytes
    ratio: float
    bits: int  # of the hash that differ from the picture that is compared
    flat: bool  # a hash that says nothing: nearly all of its bits are alike


@dataclass(frozen=True)
class Pair:
    """A found pair; `version` says by what."""

    other: int
    tier: Tier
    score: float
    version: str


class Comparisons:
    """Works off what is due."""

    def __init__(
        self,
        db: Database,
        generations: Generations,
        objects: ObjectStore,
        child: Decoders,
        *,
        similar_cosine: float,
        rest: float = 1.0,
    ) -> None:
        """Compare in `child`; vectors from `similar_cosine` on are similar; rest `rest` times as long as it took."""
        self._db, self._generations, self._objects, self._child = db, generations, objects, child
        self._similar_cosine, self._rest = similar_cosine, rest

    async def work_off(self) -> int:
        """Compare at most BATCH pictures that are due; return how many. 0 also while another process does it."""
        async with self._db.connection() as conn:
            row = await (await conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))).fetchone()
            if row is None or not row[0]:
                return 0
            await self._all_if_changed()
            rows = await conn.execute(
                "SELECT image_id, due_at FROM duplicates_due WHERE due_at <= now() ORDER BY due_at, image_id LIMIT %s",
                (BATCH,),
            )
            due = await rows.fetchall()
            for image_id, due_at in due:
                began = time.monotonic()
                try:
                    await self._compare(image_id, due_at)
                except PixelgateError:  # a store is away, and would be for the next picture too
                    raise
                except Exception as error:
                    log.error("comparison_failed", image_id=image_id, exc_info=error)
                    await self._postpone(image_id)
                await asyncio.sleep(self._rest * (time.monotonic() - began))
        return len(due)

    async def _postpone(self, image_id: int) -> None:
        """Let the others pass: one picture must not keep them waiting, whatever is wrong with it."""
        async with self._db.connection() as conn:
            await conn.execute(
                "UPDATE duplicates_due SET due_at = now() + make_interval(secs => %s) WHERE image_id = %s",
                (POSTPONED_S, image_id),
            )

    async def _all_if_changed(self) -> None:
        """Have every picture compared again when the models or the method are not those of the last time."""
        async with self._db.connection() as conn:
            rows = await conn.execute(
                "SELECT space, fingerprint FROM generations WHERE state = 'active' ORDER BY space"
            )
            versions = [METHOD, HASH, *(f"{space}:{fingerprint}" for space, fingerprint in await rows.fetchall())]
            row = await (await conn.execute("SELECT versions FROM duplicates_versions")).fetchone()
        if row is not None and row[0] == versions:
            return
        for first, last in await ranges_of_images(self._db):
            async with self._db.connection() as conn:
                await conn.execute(
                    "INSERT INTO duplicates_due (image_id) SELECT id FROM images WHERE id BETWEEN %s AND %s"
                    " ORDER BY id ON CONFLICT DO NOTHING",
                    (first, last),
                )
        async with self._db.connection() as conn:
            await conn.execute("UPDATE duplicates_versions SET versions = %s", (versions,))
        log.info("duplicates_compared_anew", versions=versions)

    async def _compare(self, image_id: int, due_at: datetime) -> None:
        async with self._db.connection() as conn:
            generations = await _active_vectors(conn, image_id)
        cosines: dict[int, tuple[float, Generation]] = {}
        for generation, vector in generations:
            self._generations.need_complete(generation)
            near = await self._generations.index.search(generation.id, vector, NEIGHBOURS + 1)
            for near_id, cosine in near:
                if near_id != image_id and (near_id not in cosines or cosine > cosines[near_id][0]):
                    cosines[near_id] = (min(1.0, cosine), generation)
        async with self._db.connection() as conn:
            pictures = await _pictures(conn, image_id, list(cosines))
            known = await _known_same(conn, image_id)
        me = pictures.pop(image_id, None)
        if me is None:
            return  # deleted, and what was due with it
        pairs: dict[int, Pair] = {}
        for other in pictures.values():
            if other.id in cosines and cosines[other.id][0] >= self._similar_cosine:
                cosine, generation = cosines[other.id]
                pairs[other.id] = Pair(other.id, "similar", cosine, _version(generation))
            elif other.bits <= SIMILAR_BITS and not other.flat and not me.flat:
                pairs[other.id] = Pair(other.id, "similar", 1 - other.bits / 64, HASH)
        wanted = [
            other
            for other in pictures.values()
            if other.id not in known and _may_be_same(me, other, cosines.get(other.id, (0.0, None))[0])
        ]
        wanted.sort(key=lambda other: (min(other.bits / 64, 1 - cosines.get(other.id, (0.0, None))[0]), other.id))
        pairs |= await self._by_pixels(me, wanted[:MOST_COMPARED])
        await self._write(image_id, due_at, list(pairs.values()), [_version(one) for one, _ in generations])

    async def _by_pixels(self, me: _Picture, others: list[_Picture]) -> dict[int, Pair]:
        if not others:
            return {}
        files = [await self._medium(picture) for picture in (me, *others)]
        mine, theirs = files[0], [(other, file) for other, file in zip(others, files[1:], strict=True) if file]
        if mine is None or not theirs:
            return {}
        try:
            verdicts = await self._child.run(compare_files, mine, [file for _, file in theirs])
        except BrokenImage as error:
            # Our own files do not do that; if one does, it must not keep all others waiting.
            log.warning("duplicates_not_compared", image_id=me.id, why=error.detail)
            return {}
        return {
            other.id: Pair(other.id, "same", verdict.score, METHOD)
            for (other, _), verdict in zip(theirs, verdicts, strict=True)
            if verdict.same
        }

    async def _medium(self, picture: _Picture) -> bytes | None:
        try:
            return await self._objects.read(object_key(picture.sha256, "medium"))
        except ObjectMissing:  # its picture is just being deleted, or the doctor has work to do
            return None

    async def _write(self, image_id: int, due_at: datetime, pairs: list[Pair], versions: list[str]) -> None:
        async with self._db.connection() as conn:
            await lock_groups(conn)
            ids = [image_id, *(pair.other for pair in pairs)]
            rows = await conn.execute("SELECT id FROM images WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE", (ids,))
            there = {row[0] for row in await rows.fetchall()}
            if image_id not in there:
                return
            # What another model found similar does not count any more; pixels are pixels.
            gone = await conn.execute(
                "DELETE FROM duplicate_pairs WHERE (a = %(id)s OR b = %(id)s) AND tier = 'similar'"
                " AND NOT version = ANY(%(versions)s) RETURNING a + b - %(id)s",
                {"id": image_id, "versions": [*versions, HASH]},
            )
            touched = {row[0] for row in await gone.fetchall()}
            pairs = [pair for pair in pairs if pair.other in there]
            await conn.execute(
                "INSERT INTO duplicate_pairs (a, b, tier, score, version)"
                " SELECT least(%(id)s, other), greatest(%(id)s, other), tier, score, version"
                " FROM unnest(%(others)s::bigint[], %(tiers)s::text[], %(scores)s::float8[], %(versions)s::text[])"
                "   AS found (other, tier, score, version)"
                " ON CONFLICT (a, b) DO UPDATE SET tier = excluded.tier, score = excluded.score,"
                "   version = excluded.version, found_at = now()"
                " WHERE duplicate_pairs.tier = 'similar' OR excluded.tier = 'same'",
                {
                    "id": image_id,
                    "others": [pair.other for pair in pairs],
                    "tiers": [pair.tier for pair in pairs],
                    "scores": [pair.score for pair in pairs],
                    "versions": [pair.version for pair in pairs],
                },
            )
            touched |= {pair.other for pair in pairs}
            if touched:
                await regroup(conn, {image_id, *touched})
            # Unless it has become due again meanwhile.
            await conn.execute("DELETE FROM duplicates_due WHERE image_id = %s AND due_at = %s", (image_id, due_at))


def be_nice() -> None:
    """Give way to everybody else: what the child that compares does before anything else."""
    os.nice(15)


def _version(generation: Generation) -> str:
    return f"{generation.space}:{generation.fingerprint}"


def _may_be_same(me: _Picture, other: _Picture, cosine: float) -> bool:
    if not 1 / _STRETCH <= me.ratio / other.ratio <= _STRETCH:
        return False
    return other.bits <= CANDIDATE_BITS or cosine >= CANDIDATE_COSINE


async def _active_vectors(conn: Connection, image_id: int) -> list[tuple[Generation, Any]]:
    rows = await conn.execute(
        "SELECT g.id, g.space, g.fingerprint, g.model, g.dim, g.state, v.vector FROM generations g"
        " JOIN vectors v ON v.generation_id = g.id AND v.image_id = %s WHERE g.state = 'active' ORDER BY g.space",
        (image_id,),
    )
    return [(Generation(*row[:6]), from_half(row[6])) for row in await rows.fetchall()]


async def _pictures(conn: Connection, image_id: int, others: list[int]) -> dict[int, _Picture]:
    """Return the picture, those of `others` that exist, and those whose hash is close and equal in one quarter."""
    quarters = (
        "((i.phash >> 48) & 65535) = ((me.phash >> 48) & 65535)",
        "((i.phash >> 32) & 65535) = ((me.phash >> 32) & 65535)",
        "((i.phash >> 16) & 65535) = ((me.phash >> 16) & 65535)",
        "(i.phash & 65535) = (me.phash & 65535)",
    )
    bits = "bit_count((i.phash # me.phash)::bit(64))"
    by_hash = " UNION ".join(
        f"(SELECT i.id FROM me CROSS JOIN images i WHERE {quarter} AND {bits} <= %(bits)s"
        f" ORDER BY {bits}, i.id LIMIT %(most)s)"
        for quarter in quarters
    )
    rows = await conn.execute(
        "WITH me AS (SELECT id, phash FROM images WHERE id = %(id)s), close AS"
        f" ({by_hash} UNION SELECT unnest(%(others)s::bigint[]) UNION SELECT id FROM me)"
        f" SELECT i.id, i.sha256, i.width::float8 / i.height, {bits}, bit_count(i.phash::bit(64))"
        " FROM me CROSS JOIN close JOIN images i ON i.id = close.id".encode(),
        {"id": image_id, "others": others, "bits": CANDIDATE_BITS, "most": NEIGHBOURS},
    )
    # A hash is 32 ones and 32 zeros, by its median; of a picture without structure it is noise, or all alike.
    return {
        row[0]: _Picture(row[0], bytes(row[1]), row[2], row[3], not 24 <= row[4] <= 40) for row in await rows.fetchall()
    }


async def _known_same(conn: Connection, image_id: int) -> set[int]:
    """Return the pictures that are known already to be the same by the method in use."""
    rows = await conn.execute(
        "SELECT a + b - %(id)s FROM duplicate_pairs WHERE (a = %(id)s OR b = %(id)s) AND tier = 'same'"
        " AND version = %(method)s",
        {"id": image_id, "method": METHOD},
    )
    return {row[0] for row in await rows.fetchall()}
