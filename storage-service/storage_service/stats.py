"""Counts, rates and times of the whole store."""

from __future__ import annotations

from pixelgate_common.contracts.storage import STAGES, StageStats, Stats, Times

from storage_service.database import Database
from storage_service.stages import fetch_totals

RECENT = 10_000
"""Times are those of so many of the latest results: percentiles of all would have to sort a million rows."""
_TIMES = "avg(t), percentile_cont(0.5) WITHIN GROUP (ORDER BY t), percentile_cont(0.95) WITHIN GROUP (ORDER BY t)"


async def fetch_stats(db: Database) -> Stats:
    """Return totals (exact) and times in milliseconds (of the latest 10,000 results of each stage).

    The overall times are those of whole pictures: what all stages together took, over the latest 10,000 pictures of
    which nothing is pending.
    """
    async with db.connection() as conn:
        totals = await fetch_totals(conn)
        rows = await conn.execute(
            f"SELECT s.stage, {_TIMES} FROM stages s LEFT JOIN LATERAL (SELECT a.took_ms AS t FROM analyses a"
            "   WHERE a.stage = s.stage AND a.state = 'done' ORDER BY a.finished_at DESC LIMIT %s) AS latest ON true"
            " WHERE s.enabled GROUP BY s.stage".encode(),
            (RECENT,),
        )
        times = {stage: Times(mean=mean, p50=p50, p95=p95) for stage, mean, p50, p95 in await rows.fetchall()}
        whole = await (
            await conn.execute(
                f"SELECT {_TIMES} FROM (SELECT id FROM images ORDER BY id DESC LIMIT %s) AS i CROSS JOIN LATERAL"
                "   (SELECT sum(a.took_ms) AS t FROM analyses a WHERE a.image_id = i.id"
                "    HAVING bool_and(a.state IN ('done', 'failed'))) AS pictures".encode(),
                (RECENT,),
            )
        ).fetchone()
    assert whole is not None
    return Stats(
        images=totals.get("images", 0),
        bytes=totals.get("bytes", 0),
        stages={stage: _stage_stats(totals, stage, times[stage]) for stage in STAGES if stage in times},
        processing_ms=Times(mean=whole[0], p50=whole[1], p95=whole[2]),
    )


def _stage_stats(totals: dict[str, int], stage: str, times: Times) -> StageStats:
    done, failed = totals.get(f"{stage}.done", 0), totals.get(f"{stage}.failed", 0)
    finished = done + failed
    return StageStats(
        done=done,
        failed=failed,
        success_rate=done / finished if finished else None,
        failure_rate=failed / finished if finished else None,
        processing_ms=times,
    )
