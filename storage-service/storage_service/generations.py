"""Generations: all vectors of one space and fingerprint, in Postgres (the truth) and in the vector index alike.

Writing order: the index first, then Postgres in the same transaction. A crash between the two leaves a point without a
row, which no search shows (hits are joined with Postgres) and which the same work, done again, overwrites.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy.typing as npt
import structlog
from pixelgate_common.contracts.storage import StageName
from pixelgate_common.errors import Conflict, FingerprintMismatch
from psycopg.rows import class_row

from storage_service.database import Connection, Database
from storage_service.payloads import fetch_payload_rows, payload_of
from storage_service.reconcile import Reconciler
from storage_service.vectors.halves import from_half, to_half, to_unit
from storage_service.vectors.protocol import Payload, VectorIndex, VectorPoint

log = structlog.get_logger(__name__)
_LOCK = 0x67656E73  # held by whoever adds a generation, until its row is committed
_COLUMNS = "id, space, fingerprint, model, dim, state"


@dataclass(frozen=True, slots=True)
class Generation:
    """One row of `generations`; search uses the `active` one of a space unless a fingerprint is named."""

    id: int
    space: StageName
    fingerprint: str
    model: str
    dim: int
    state: Literal["building", "active", "retired"]


async def find_generation(conn: Connection, space: str, fingerprint: str) -> Generation | None:
    """Return the generation of this space and fingerprint, or None."""
    async with conn.cursor(row_factory=class_row(Generation)) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM generations WHERE space = %s AND fingerprint = %s", (space, fingerprint)
        )
        return await cursor.fetchone()


async def need_generation(conn: Connection, space: str, fingerprint: str) -> Generation:
    """Return the generation of this space and fingerprint; FingerprintMismatch, naming those present, without one."""
    if (generation := await find_generation(conn, space, fingerprint)) is not None:
        return generation
    rows = await conn.execute(
        "SELECT fingerprint, state FROM generations WHERE space = %s ORDER BY id DESC LIMIT 5", (space,)
    )
    present = ", ".join(f"{name} ({state})" for name, state in await rows.fetchall()) or "none yet"
    raise FingerprintMismatch(
        f"There are no {space} vectors of {fingerprint}; present: {present}.", field="fingerprint"
    )


class Generations:
    """The generations of every space, kept alike in Postgres and in the vector index."""

    def __init__(self, db: Database, index: VectorIndex) -> None:
        """Work on `db` and `index`; nothing is opened before `start`."""
        self._db = db
        self.index = index
        self._reconciler = Reconciler(db, index)

    async def start(self, patience_s: float = 5.0) -> None:
        """Open every generation and begin to make the index what Postgres says.

        Returns when that is done for the active generations, or after `patience_s`: the rest is done in the background,
        and until then `check` and searches of a generation that lacks points say so.
        """
        async with self._db.connection() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            generations = await self._all(conn)
            for generation in generations:
                await self.index.ensure(generation.id, generation.dim)
            for leftover in await self.index.present() - {generation.id for generation in generations}:
                log.info("vector_generation_dropped", generation=leftover, why="Postgres does not know it")
                await self.index.drop(leftover)
        # The active ones come first: they are what searches wait for.
        generations.sort(key=lambda generation: ("active", "building", "retired").index(generation.state))
        active = [generation.id for generation in generations if generation.state == "active"]
        await self._reconciler.start([generation.id for generation in generations], active, patience_s)

    async def close(self) -> None:
        """Stop the background work and close the index."""
        await self._reconciler.stop()
        await self.index.close()

    async def check(self) -> None:
        """Raise Unavailable while an active generation lacks points, so that the service says it is not ready yet."""
        self._reconciler.check()

    async def settled(self) -> None:
        """Wait until the index is what Postgres said at the start."""
        await self._reconciler.settled()

    def need_complete(self, generation: Generation) -> None:
        """Raise Unavailable while the index still lacks points of `generation`: a search would miss pictures."""
        self._reconciler.need_complete(generation.id)

    async def ensure(self, conn: Connection, space: StageName, fingerprint: str, model: str, dim: int) -> Generation:
        """Return the generation, made in the transaction of `conn` when it is new.

        The first one of a space is active at once, later ones are `building` until `maybe_activate`. Conflict when the
        fingerprint is known with another dimension.
        """
        generation = await find_generation(conn, space, fingerprint)
        if generation is None:
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            await conn.execute(
                "INSERT INTO generations (space, fingerprint, model, dim, state, activated_at)"
                " SELECT %(space)s, %(fingerprint)s, %(model)s, %(dim)s,"
                " CASE WHEN taken THEN 'building' ELSE 'active' END, CASE WHEN NOT taken THEN now() END"
                " FROM (SELECT EXISTS (SELECT 1 FROM generations WHERE space = %(space)s AND state = 'active'))"
                " AS present (taken) ON CONFLICT (space, fingerprint) DO NOTHING",
                {"space": space, "fingerprint": fingerprint, "model": model, "dim": dim},
            )
            generation = await need_generation(conn, space, fingerprint)
        if generation.dim != dim:
            raise Conflict(f"The {space} vectors of {fingerprint} have {generation.dim} values, not {dim}.")
        await self.index.ensure(generation.id, generation.dim)
        return generation

    async def add_vectors(
        self, conn: Connection, space: StageName, fingerprint: str, vectors: Sequence[tuple[int, npt.ArrayLike]]
    ) -> int:
        """Keep these pictures' vectors, in the transaction of `conn`; return how many pictures were still there.

        Vectors may have any length but zero. A picture that had one keeps its place in the order of arrival.
        """
        generation = await need_generation(conn, space, fingerprint)
        halves = {image_id: to_half(to_unit(vector, generation.dim)) for image_id, vector in vectors}
        # The clock before the pictures' rows, as arrivals do: one order of locks for everybody.
        row = await (await conn.execute("UPDATE clock SET seq = seq + 1 RETURNING seq")).fetchone()
        assert row is not None
        rows = await fetch_payload_rows(conn, sorted(halves), locked=True)
        if not rows:
            return 0
        known = await conn.execute(
            "SELECT image_id, seq FROM vectors WHERE generation_id = %s AND image_id = ANY(%s)",
            (generation.id, list(rows)),
        )
        seqs: dict[int, int] = {**dict.fromkeys(rows, int(row[0])), **dict(await known.fetchall())}
        await self.index.upsert(
            generation.id,
            [
                VectorPoint(image_id, from_half(halves[image_id]), payload_of(picture, seqs[image_id]))
                for image_id, picture in rows.items()
            ],
        )
        await conn.execute(
            "INSERT INTO vectors (generation_id, image_id, seq, vector)"
            " SELECT %s, * FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[])"
            " ON CONFLICT (generation_id, image_id) DO UPDATE SET vector = excluded.vector",
            (generation.id, list(rows), [seqs[id_] for id_ in rows], [halves[id_] for id_ in rows]),
        )
        return len(rows)

    async def refresh_payload(self, image_ids: Collection[int]) -> None:
        """Bring the pictures' payloads up to date; called when an edit has been committed."""
        if not image_ids:
            return
        async with self._db.connection() as conn:
            # Locked, so that two refreshes of one picture cannot overtake each other with what they have read.
            rows = await fetch_payload_rows(conn, sorted(image_ids), locked=True)
            found = await conn.execute(
                "SELECT generation_id, image_id, seq FROM vectors WHERE image_id = ANY(%s)", (list(rows),)
            )
            payloads: dict[int, dict[int, Payload]] = {}
            for generation_id, image_id, seq in await found.fetchall():
                payloads.setdefault(generation_id, {})[image_id] = payload_of(rows[image_id], seq)
            for generation_id, of_generation in payloads.items():
                await self.index.set_payload(generation_id, of_generation)

    async def remove(self, image_ids: Collection[int]) -> None:
        """Remove deleted pictures from the index; their rows are gone already."""
        if image_ids:
            await self.index.remove(image_ids)

    async def maybe_activate(self, space: StageName) -> bool:
        """Let search use the wanted generation of `space` if it is complete; return whether it was switched now.

        Complete, counted in Postgres: nothing is pending or running, and no picture would be lost to search. A picture
        that failed for good counts as lost only when the active generation has a vector of it.
        """
        async with self._db.connection() as conn:
            row = await (
                await conn.execute(
                    "SELECT g.id FROM generations g"
                    " JOIN stages s ON s.stage = g.space AND s.fingerprint = g.fingerprint"
                    " WHERE g.space = %(space)s AND g.state = 'building' AND NOT EXISTS"
                    " (SELECT 1 FROM analyses WHERE stage = %(space)s AND state IN ('pending', 'running'))",
                    {"space": space},
                )
            ).fetchone()
            if row is None:
                return False
            # The clock's lock keeps arrivals and new vectors out between the count and the switch.
            await conn.execute("SELECT seq FROM clock FOR UPDATE")
            done = await conn.execute(
                "SELECT NOT EXISTS (SELECT 1 FROM images i"
                "   LEFT JOIN vectors v ON v.generation_id = %(id)s AND v.image_id = i.id"
                "   LEFT JOIN analyses a ON a.image_id = i.id AND a.stage = %(space)s"
                "   WHERE v.image_id IS NULL AND (a.state IS DISTINCT FROM 'failed' OR EXISTS (SELECT 1 FROM vectors o"
                "     JOIN generations g ON g.id = o.generation_id WHERE g.space = %(space)s AND g.state = 'active'"
                "     AND o.image_id = i.id)))",
                {"id": row[0], "space": space},
            )
            complete = await done.fetchone()
            if complete is None or not complete[0]:
                return False
            await conn.execute(
                "UPDATE generations SET state = 'retired' WHERE space = %s AND state = 'active'", (space,)
            )
            await conn.execute("UPDATE generations SET state = 'active', activated_at = now() WHERE id = %s", (row[0],))
        log.info("vector_generation_activated", space=space, generation=row[0])
        return True

    async def overview(self) -> list[tuple[Generation, int]]:
        """Return every generation and how many pictures have their vector in it."""
        async with self._db.connection() as conn:
            counts = await conn.execute("SELECT generation_id, count(*) FROM vectors GROUP BY generation_id")
            images = dict(await counts.fetchall())
            return [(generation, images.get(generation.id, 0)) for generation in await self._all(conn)]

    async def _all(self, conn: Connection) -> list[Generation]:
        async with conn.cursor(row_factory=class_row(Generation)) as cursor:
            await cursor.execute(f"SELECT {_COLUMNS} FROM generations ORDER BY id")
            return await cursor.fetchall()
