"""The stages of analysis: which are on, which model they want, and how far each one is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import structlog
from pixelgate_common.contracts.storage import SPACES, STAGES, StageModel, StageName, StageProgress
from pixelgate_common.errors import InvalidRequest, NotFound

from storage_service.database import Connection, Database
from storage_service.generations import Generations

log = structlog.get_logger(__name__)
RATE_WINDOW_S = 60
_RANGE_IDS = 20_000
_LAST_ERRORS = 5
ON_REQUEST: tuple[StageName, ...] = ("cutout",)
"""Stages that are always on, and look at every picture only where the settings name them."""
RESET = "token = NULL, lease_until = NULL, attempts = 0, not_before = now(), error = NULL"
"""Forgets everything in a row of `analyses` that belongs to an attempt."""


@dataclass(frozen=True)
class Stage:
    """One row of `stages`."""

    stage: StageName
    paused: bool
    fingerprint: str | None
    model: str | None


async def enable_stages(db: Database, enabled: Collection[StageName]) -> None:
    """Have the `enabled` stages and those on request on, and give each picture a pending row for every enabled one."""
    async with db.connection() as conn:
        # In order, and the clock last: leases and results lock in this order too.
        for stage in sorted(STAGES):
            await conn.execute(
                "INSERT INTO stages (stage, enabled, automatic) VALUES (%s, %s, %s)"
                " ON CONFLICT (stage) DO UPDATE SET enabled = excluded.enabled, automatic = excluded.automatic"
                " WHERE (stages.enabled, stages.automatic) <> (excluded.enabled, excluded.automatic)",
                (stage, stage in enabled or stage in ON_REQUEST, stage in enabled),
            )
        # Arrivals hold the clock until they commit: after this, each has either committed or will see the stages above.
        await conn.execute("UPDATE clock SET seq = seq")
    for stage in enabled:
        async with db.connection() as conn:
            totals = await fetch_totals(conn)
        rows = sum(n for what, n in totals.items() if what.startswith(f"{stage}."))
        if rows < totals.get("images", 0):
            await _backfill(db, stage)


async def _backfill(db: Database, stage: StageName) -> None:
    added = 0
    for first, last in await ranges_of_images(db):
        async with db.connection() as conn:
            cursor = await conn.execute(
                "INSERT INTO analyses (image_id, stage) SELECT id, %s FROM images WHERE id BETWEEN %s AND %s"
                " ON CONFLICT DO NOTHING",
                (stage, first, last),
            )
            added += cursor.rowcount
    log.info("stage_backfilled", stage=stage, images=added)


async def ranges_of_images(db: Database) -> list[tuple[int, int]]:
    """Return ranges of ids that hold all pictures, so that what touches them all does so in short transactions."""
    async with db.connection() as conn:
        row = await (await conn.execute("SELECT min(id), max(id) FROM images")).fetchone()
    if row is None or row[0] is None:
        return []
    return [(first, first + _RANGE_IDS - 1) for first in range(row[0], row[1] + 1, _RANGE_IDS)]


async def fetch_stage(conn: Connection, stage: str, lock: str = "") -> Stage:
    """Return a stage that is on, its row locked by `lock` (e.g. `FOR SHARE`); NotFound for any other."""
    query = f"SELECT stage, paused, fingerprint, model FROM stages WHERE stage = %s AND enabled {lock}"
    row = await (await conn.execute(query.encode(), (stage,))).fetchone()
    if row is None:
        raise NotFound(f"The stage {stage!r} is not on here (PIXELGATE_STORAGE_STAGES).")
    return Stage(*row)


async def want_model(db: Database, generations: Generations, stage: StageName, model: StageModel) -> None:
    """Let the stage's results come from `model` from now on; those of another fingerprint become pending again.

    A vector that is still there from an earlier time with this fingerprint counts as done: a rollback computes nothing.
    Called again with the same fingerprint this finishes what an interrupted call began.
    """
    if stage in SPACES and model.dim is None:
        raise InvalidRequest(f"The stage {stage} makes vectors: their dimension is needed.", field="dim")
    async with db.connection() as conn:
        before = await fetch_stage(conn, stage, "FOR UPDATE")
        generation_id = None
        if stage in SPACES and model.dim is not None:
            generation = await generations.ensure(conn, stage, model.fingerprint, model.model, model.dim)
            generation_id = generation.id
        await conn.execute(
            "UPDATE stages SET fingerprint = %s, model = %s WHERE stage = %s", (model.fingerprint, model.model, stage)
        )
    # A row's fingerprint is that of its result or, while one is awaited, of the model at work on it. Taken back to NULL
    # where the result does not count any more, kept by `rerun`, where it is the same model that shall do it again.
    there = "EXISTS (SELECT 1 FROM vectors v WHERE v.generation_id = %(generation)s AND v.image_id = a.image_id)"
    where = "stage = %(stage)s AND image_id BETWEEN %(first)s AND %(last)s AND fingerprint IS DISTINCT FROM %(wanted)s"
    outdated = 0
    for first, last in await ranges_of_images(db):
        values = {
            "stage": stage, "first": first, "last": last, "wanted": model.fingerprint, "generation": generation_id,
        }  # fmt: skip
        async with db.connection() as conn:
            if (await fetch_stage(conn, stage, "FOR SHARE")).fingerprint != model.fingerprint:
                return  # a later call wants another model
            cursor = await conn.execute(
                f"UPDATE analyses a SET {RESET}, state = 'pending', fingerprint = NULL"
                f" WHERE {where} AND state <> 'pending' AND NOT {there}".encode(),
                values,
            )
            outdated += cursor.rowcount
            await conn.execute(
                f"UPDATE analyses a SET {RESET}, state = 'done', fingerprint = %(wanted)s"
                f" WHERE {where} AND {there}".encode(),
                values,
            )
    if before.fingerprint != model.fingerprint:
        log.info("stage_model", stage=stage, model=model.model, fingerprint=model.fingerprint, outdated=outdated)
    if generation_id is not None:
        await generations.maybe_activate(stage)


async def set_paused(db: Database, stage: StageName, paused: bool) -> None:
    """Hand out no more work of the stage, or hand it out again; results of work already handed out are still taken."""
    async with db.connection() as conn:
        await fetch_stage(conn, stage)
        await conn.execute("UPDATE stages SET paused = %s WHERE stage = %s", (paused, stage))


async def fetch_totals(conn: Connection) -> dict[str, int]:
    """Return the totals that `tallies` keeps: `images`, `bytes`, and `<stage>.<state>` for each; exact, and cheap.

    The table holds the changes since they were last folded together, so a million pictures are some dozens of rows.
    """
    rows = await conn.execute("SELECT what, sum(n)::bigint FROM tallies GROUP BY what")
    return {what: int(n) for what, n in await rows.fetchall()}


async def fold_tallies(db: Database) -> None:
    """Replace the changes in `tallies` by their sums; whoever writes or reads at the same time is not in the way."""
    async with db.connection() as conn:
        await conn.execute(
            "WITH old AS (DELETE FROM tallies WHERE id IN (SELECT id FROM tallies ORDER BY id LIMIT 50000"
            " FOR UPDATE SKIP LOCKED) RETURNING what, n)"
            " INSERT INTO tallies (what, n) SELECT what, sum(n) FROM old GROUP BY what HAVING sum(n) <> 0"
        )


async def fetch_progress(db: Database) -> list[StageProgress]:
    """Return the progress of every stage that is on.

    Counts come from `tallies`. A row whose lease has run out counts as pending, which is what it is; those few stand in
    the index `analyses_running`. The rate is that of the last 60 s, or since the first result within them, from the
    recent end of `analyses_done`; the last errors from that of `analyses_failed`.
    """
    async with db.connection() as conn:
        totals = await fetch_totals(conn)
        rows = await conn.execute(
            "SELECT s.stage, s.paused, s.fingerprint, s.model,"
            " (SELECT count(*) FROM analyses a WHERE a.stage = s.stage AND a.state = 'running'"
            "   AND a.lease_until < now()),"
            " recent.n, extract(epoch FROM clock_timestamp() - recent.since)::double precision,"
            " ARRAY(SELECT a.error FROM analyses a WHERE a.stage = s.stage AND a.state = 'failed'"
            "   ORDER BY a.finished_at DESC LIMIT %s)"
            " FROM stages s CROSS JOIN LATERAL (SELECT count(*) AS n, min(a.finished_at) AS since FROM analyses a"
            "   WHERE a.stage = s.stage AND a.state = 'done' AND a.finished_at > now() - make_interval(secs => %s)"
            " ) AS recent WHERE s.enabled",
            (_LAST_ERRORS, RATE_WINDOW_S),
        )
        found = await rows.fetchall()
    progress = {}
    for stage, paused, fingerprint, model, expired, recent, since_s, errors in found:
        count = {state: totals.get(f"{stage}.{state}", 0) for state in ("pending", "running", "done", "failed")}
        # A second at least: the first batch of a run says nothing about a rate of its own.
        rate = recent / max(1.0, since_s) if recent else 0.0
        left = count["pending"] + count["running"]
        progress[stage] = StageProgress(
            stage=stage,
            fingerprint=fingerprint,
            model=model,
            paused=paused,
            pending=count["pending"] + expired,
            running=count["running"] - expired,
            done=count["done"],
            failed=count["failed"],
            rate_per_s=round(rate, 3),
            seconds_left=0.0 if left == 0 else round(left / rate, 1) if rate else None,
            last_errors=[error for error in errors if error],
        )
    return [progress[stage] for stage in STAGES if stage in progress]
