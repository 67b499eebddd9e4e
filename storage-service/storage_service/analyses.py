"""Work on pictures: handed out under leases, taken back as results, tried again after failures.

Locks are taken in one order by everybody: the stage's row, pictures by id, analyses by picture, the clock.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pixelgate_common.contracts.storage import (
    SPACES,
    Leased,
    LeaseWanted,
    ResultsTaken,
    StageName,
    StageResult,
    StageResults,
)
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest, NotFound
from pixelgate_common.vectors import FloatVector, decode_vector

from storage_service.database import Connection, Database
from storage_service.duplicates import AFTER_VECTOR_S, MARK_DUE
from storage_service.generations import Generations
from storage_service.palettes import write_palettes
from storage_service.results import HAVE_COLORS, NotKept, keep_result
from storage_service.stages import RESET, fetch_stage, ranges_of_images

_MAX_ERROR_CHARACTERS = 1000


@dataclass(frozen=True)
class RetryPolicy:
    """How often a failed analysis is tried, and the wait before each further attempt (doubling, ± half of it)."""

    max_attempts: int = 5
    base_s: float = 2.0
    max_s: float = 600.0

    def wait_s(self, attempts: int) -> float:
        """Return the seconds to wait after the failure of attempt number `attempts` (1 is the first)."""
        longest = min(self.max_s, self.base_s * 2.0 ** min(attempts - 1, 32))
        return longest * random.uniform(0.5, 1.5)


async def lease(db: Database, stage: StageName, wanted: LeaseWanted, policy: RetryPolicy) -> list[Leased]:
    """Hand out at most `wanted.limit` pictures, those that wait longest first; each goes to one worker at a time.

    FingerprintMismatch unless the worker's model is the one that the stage wants.
    """
    async with db.connection() as conn:
        row = await fetch_stage(conn, stage, "FOR SHARE")
        if row.fingerprint != wanted.fingerprint:
            raise FingerprintMismatch(
                f"The stage {stage} wants {row.fingerprint or 'no model yet'}, not {wanted.fingerprint}."
                f" Name the model first (PUT /v1/stages/{stage}/model).",
                field="fingerprint",
            )
        if row.paused:
            return []
        # In the order of the indexes `analyses_running` and `analyses_pending`, from their beginnings. Left to itself,
        # with the statistics of a table that is filling up, the planner sorts the whole backlog for each lease:
        # measured at a million pictures, 130 ms in place of 0.1 ms.
        await conn.execute(
            "SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)"
        )
        # Workers that went away with their work: a picture that takes its worker down must not do so for ever.
        await conn.execute(
            "UPDATE analyses SET state = 'failed', token = NULL, lease_until = NULL, finished_at = now(),"
            " error = 'No worker that took this picture ever answered.'"
            " WHERE (image_id, stage) IN (SELECT image_id, stage FROM analyses WHERE stage = %s AND state = 'running'"
            "   AND lease_until < now() AND attempts >= %s ORDER BY lease_until FOR UPDATE SKIP LOCKED)",
            (stage, policy.max_attempts),
        )
        expired = "state = 'running' AND lease_until < now()"
        leased = await _lease(conn, stage, wanted, wanted.limit, expired, "lease_until")
        if len(leased) < wanted.limit:
            fresh = "state = 'pending' AND not_before <= now()"
            leased += await _lease(conn, stage, wanted, wanted.limit - len(leased), fresh, "not_before, image_id")
        return sorted(leased, key=lambda item: item.image_id)


async def _lease(conn: Connection, stage: str, wanted: LeaseWanted, limit: int, which: str, order: str) -> list[Leased]:
    rows = await conn.execute(
        "WITH chosen AS MATERIALIZED (SELECT image_id FROM analyses"
        f" WHERE stage = %(stage)s AND {which} ORDER BY {order} LIMIT %(limit)s FOR UPDATE SKIP LOCKED)"
        " UPDATE analyses a SET state = 'running', token = gen_random_uuid(), attempts = attempts + 1,"
        " lease_until = now() + make_interval(secs => %(lease_s)s), fingerprint = %(fingerprint)s"
        " FROM chosen WHERE a.image_id = chosen.image_id AND a.stage = %(stage)s"
        " RETURNING a.image_id, a.token::text, a.attempts".encode(),
        {"stage": stage, "limit": limit, "lease_s": wanted.lease_s, "fingerprint": wanted.fingerprint},
    )
    return [Leased(image_id=id_, token=token, attempt=attempt) for id_, token, attempt in await rows.fetchall()]


async def take_results(
    db: Database, generations: Generations, stage: StageName, results: StageResults, policy: RetryPolicy
) -> ResultsTaken:
    """Keep the results whose leases still hold, each with its vector in one transaction; the others are stale.

    A result that cannot be kept (a vector of zeros, a caption that is none) fails its own picture. InvalidRequest when
    a result of a space has neither vector nor problem, or one of another dimension than its generation.
    """
    items = {item.image_id: item for item in reversed(results.items)}
    async with db.connection() as conn:
        if (await fetch_stage(conn, stage, "FOR SHARE")).fingerprint != results.fingerprint:
            return ResultsTaken(accepted=0, stale=len(results.items))
        # First the pictures, so that none is deleted before this commits, and a deletion never waits for it crosswise.
        # A vector's payload is read under SHARE after the clock was taken, so SHARE is what it must hold before that:
        # a palette's result holds the pictures when it comes to the clock.
        lock = "SHARE" if stage in SPACES else "NO KEY UPDATE"
        await conn.execute(f"SELECT 1 FROM images WHERE id = ANY(%s) ORDER BY id FOR {lock}".encode(), (list(items),))
        rows = await conn.execute(
            "SELECT image_id, token::text, attempts FROM analyses WHERE stage = %s AND image_id = ANY(%s)"
            " AND state = 'running' ORDER BY image_id FOR UPDATE",
            (stage, list(items)),
        )
        held = [(items[id_], attempts) for id_, token, attempts in await rows.fetchall() if items[id_].token == token]
        done: list[StageResult] = []
        vectors: list[tuple[int, FloatVector]] = []
        failed: list[tuple[StageResult, int, str, bool]] = []
        for item, attempts in held:
            if item.problem is not None:
                failed.append((item, attempts, item.problem.detail or item.problem.title, item.retry))
                continue
            if stage in SPACES:
                vector = _vector(item)
                if not vector.any():
                    failed.append((item, attempts, "The vector has no direction: all of its values are 0.", False))
                    continue
                vectors.append((item.image_id, vector))
            else:
                try:
                    await keep_result(conn, stage, item)
                except NotKept as error:
                    failed.append((item, attempts, str(error), False))
                    continue
            done.append(item)
        await _mark_done(conn, stage, done)
        await _mark_failed(conn, stage, failed, policy)
        if done and stage in HAVE_COLORS:
            await write_palettes(conn, [item.image_id for item in done])
        if vectors:
            await conn.execute(MARK_DUE, (AFTER_VECTOR_S, [image_id for image_id, _ in vectors]))
            # Last, because it takes the clock, which every other writer waits for from here to the commit.
            await generations.add_vectors(conn, stage, results.fingerprint, vectors)
    if stage not in SPACES:
        await generations.refresh_payload([item.image_id for item in done])
    elif held:
        await generations.maybe_activate(stage)
    return ResultsTaken(accepted=len(held), stale=len(results.items) - len(held))


def _vector(item: StageResult) -> FloatVector:
    if item.vector is None:
        raise InvalidRequest(f"The result of picture {item.image_id} has neither vector nor problem.", field="items")
    return np.asarray(decode_vector(item.vector))


async def _mark_done(conn: Connection, stage: str, done: Sequence[StageResult]) -> None:
    if done:
        await conn.execute(
            "UPDATE analyses a SET state = 'done', token = NULL, lease_until = NULL, error = NULL, took_ms = d.took_ms,"
            " finished_at = clock_timestamp() FROM unnest(%s::bigint[], %s::float8[]) AS d (image_id, took_ms)"
            " WHERE a.image_id = d.image_id AND a.stage = %s",
            ([item.image_id for item in done], [item.took_ms for item in done], stage),
        )


async def _mark_failed(
    conn: Connection, stage: str, failed: Sequence[tuple[StageResult, int, str, bool]], policy: RetryPolicy
) -> None:
    if not failed:
        return
    parked = [not retry or attempts >= policy.max_attempts for _, attempts, _, retry in failed]
    await conn.execute(
        "UPDATE analyses a SET state = CASE WHEN f.parked THEN 'failed' ELSE 'pending' END, token = NULL,"
        " lease_until = NULL, error = f.error, took_ms = f.took_ms,"
        " not_before = clock_timestamp() + make_interval(secs => f.wait_s),"
        " finished_at = CASE WHEN f.parked THEN clock_timestamp() END"
        " FROM unnest(%s::bigint[], %s::text[], %s::float8[], %s::boolean[], %s::float8[])"
        "   AS f (image_id, error, took_ms, parked, wait_s)"
        " WHERE a.image_id = f.image_id AND a.stage = %s",
        (
            [item.image_id for item, _, _, _ in failed],
            [error.replace("\x00", "")[:_MAX_ERROR_CHARACTERS] for _, _, error, _ in failed],
            [item.took_ms for item, _, _, _ in failed],
            parked,
            [policy.wait_s(attempts) for _, attempts, _, _ in failed],
            stage,
        ),
    )


async def release(db: Database, stage: StageName, tokens: Sequence[str]) -> int:
    """Take unused leases back, their attempt not counted; return how many of them still held."""
    async with db.connection() as conn:
        await fetch_stage(conn, stage)
        cursor = await conn.execute(
            "UPDATE analyses SET state = 'pending', token = NULL, lease_until = NULL,"
            " attempts = greatest(0, attempts - 1)"
            " WHERE (image_id, stage) IN (SELECT image_id, stage FROM analyses WHERE stage = %s AND state = 'running'"
            "   AND token::text = ANY(%s) ORDER BY image_id FOR UPDATE)",
            (stage, list(tokens)),
        )
        return cursor.rowcount


async def request(db: Database, stage: StageName, image_ids: Sequence[int]) -> None:
    """Have the stage look at these pictures although it is not automatic; NotFound when one of them is not there.

    What is done or under way already stays so; what had failed is tried again.
    """
    ids = sorted(set(image_ids))
    async with db.connection() as conn:
        await fetch_stage(conn, stage, "FOR SHARE")
        rows = await conn.execute("SELECT id FROM images WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE", (ids,))
        if missing := set(ids) - {row[0] for row in await rows.fetchall()}:
            raise NotFound(f"There is no picture {min(missing)}.")
        await conn.execute(
            "INSERT INTO analyses (image_id, stage) SELECT id, %s FROM unnest(%s::bigint[]) AS id ORDER BY id"
            f" ON CONFLICT (image_id, stage) DO UPDATE SET {RESET}, state = 'pending'"
            " WHERE analyses.state = 'failed'".encode(),
            (stage, ids),
        )


async def retry_failed(db: Database, stage: StageName) -> int:
    """Make what was parked as failed pending again; return how many pictures that are."""
    return await _start_over(db, stage, "state = 'failed'")


async def rerun(db: Database, stage: StageName) -> int:
    """Make every finished picture pending again, under the same model; return how many they are."""
    return await _start_over(db, stage, "state IN ('done', 'failed')")


async def _start_over(db: Database, stage: StageName, which: str) -> int:
    async with db.connection() as conn:
        await fetch_stage(conn, stage)
    count = 0
    for first, last in await ranges_of_images(db):
        async with db.connection() as conn:
            cursor = await conn.execute(
                f"UPDATE analyses SET {RESET}, state = 'pending'"
                f" WHERE stage = %s AND {which} AND image_id BETWEEN %s AND %s".encode(),
                (stage, first, last),
            )
            count += cursor.rowcount
    return count
