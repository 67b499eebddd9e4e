"""(j) Search by colour: latency, recall against comparing with every palette, memory, and the time that a start takes.

Everything is real but the pictures' files: Postgres with its schema, the palettes in memory, and the classes that
answer `POST /v1/search`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pixelgate_common.colors import palette_distances, srgb_to_lab
from pixelgate_common.contracts.storage import Search
from pixelgate_local.postgres import LocalPostgres
from storage_service.color_index import ColorIndex
from storage_service.database import Database
from storage_service.generations import Generations
from storage_service.limits import SearchLimits
from storage_service.migrations import migrate
from storage_service.palettes import pack
from storage_service.search import Searcher
from storage_service.vectors.edge import EdgeVectorIndex

from bench.table import show

HITS, PLACES, BATCH = 24, 8, 5_000
Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def palettes(count: int) -> Arrays:
    """Return `count` palettes of 3 to 8 colours around 200 themes: labs (n, 8, 3), shares (n, 8)."""
    random = np.random.default_rng(7)
    themes = random.integers(0, 256, (200, PLACES, 3))
    rgb = np.clip(themes[random.integers(0, 200, count)] + random.normal(0, 25, (count, PLACES, 3)), 0, 255)
    shares = random.dirichlet(np.full(PLACES, 0.8), count)
    shares[np.arange(PLACES) >= random.integers(3, PLACES + 1, count)[:, None]] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    return np.round(srgb_to_lab(rgb).astype(np.float64), 2).astype(np.float32), shares.astype(np.float32)


async def fill(db: Database, labs: npt.NDArray[np.float32], shares: npt.NDArray[np.float32]) -> None:
    """Insert one picture for each palette; its id is its place, from 1."""
    for start in range(0, len(labs), BATCH):
        packed = [
            pack(
                [
                    {"lab": lab, "share": share}
                    for lab, share in zip(labs[row].tolist(), shares[row].tolist(), strict=True)
                    if share > 0
                ]
            )
            for row in range(start, min(start + BATCH, len(labs)))
        ]
        async with db.connection() as conn:
            await conn.execute(
                "INSERT INTO images"
                " (seq, sha256, media_type, format, width, height, bytes, has_alpha, phash, thumbhash)"
                " SELECT n, sha256(n::text::bytea), 'image/jpeg', 'jpeg', 640, 480, 200000, false, n, '\\x00'"
                " FROM generate_series(%s::bigint, %s::bigint) AS n ORDER BY n",
                (start + 1, start + len(packed)),
            )
            await conn.execute(
                "INSERT INTO palettes (image_id, seq, changed, whole)"
                " SELECT %s + n, %s + n, %s + n, whole FROM unnest(%s::bytea[]) WITH ORDINALITY AS p (whole, n)",
                (start, start, start, packed),
            )
            await conn.execute("UPDATE clock SET seq = %s", (start + len(packed),))
    async with db.connection() as conn:
        await conn.execute("ANALYZE")


async def measure(size: int, query_count: int) -> None:
    """Fill a store, ask it, and print what that took."""
    labs, shares = palettes(size)
    random = np.random.default_rng(3)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory(prefix="pixelgate-bench-") as name:
        folder = Path(name)
        with LocalPostgres(folder / "postgres") as postgres:
            await migrate(postgres.dsn)
            db = Database(postgres.dsn)
            await db.open()
            generations = Generations(db, EdgeVectorIndex(folder / "vectors"))
            await generations.start()
            await fill(db, labs, shares)
            index = ColorIndex(db)
            begun = time.perf_counter()
            await index.tidy()
            read_s = time.perf_counter() - begun
            searcher = Searcher(db, generations, SearchLimits(), index)
            for colors in (1, 3, 8):
                took, slow, recalls = [], [], []
                for _ in range(query_count):
                    query = np.round(srgb_to_lab(random.integers(0, 256, (colors, 3))).astype(np.float64), 2)
                    weights = random.uniform(0.2, 1, colors)
                    terms = [
                        {"lab": lab, "weight": weight}
                        for lab, weight in zip(query.tolist(), weights.tolist(), strict=True)
                    ]
                    asked = Search.model_validate({"colors": {"colors": terms}, "limit": HITS})
                    begun = time.perf_counter()
                    page = await searcher.search(asked)
                    took.append((time.perf_counter() - begun) * 1000)
                    begun = time.perf_counter()
                    distances = palette_distances(query, weights, labs, shares)
                    slow.append((time.perf_counter() - begun) * 1000)
                    best = np.lexsort((np.arange(size), distances))[:HITS] + 1
                    recalls.append(len({hit.image.id for hit in page.hits} & set(best.tolist())) / HITS)
                rows.append(
                    [
                        f"{colors} colour{'s' * (colors > 1)}",
                        statistics.median(took),
                        float(np.percentile(took, 95)),
                        statistics.median(slow),
                        statistics.median(slow) / statistics.median(took),
                        statistics.mean(recalls),
                    ]
                )
            await generations.close()
            await db.close()
    print(f"{size:,} palettes, read in {read_s:.2f} s at a start\n")
    show(["query", "search p50 ms", "p95 ms", "every palette ms", "ratio", f"recall@{HITS}"], rows)


def main() -> None:
    """Measure at 100,000 palettes, or at 10,000 to see that it runs."""
    parser = argparse.ArgumentParser(prog="bench.color_search", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 palettes and few queries")
    options = parser.parse_args()
    asyncio.run(measure(10_000 if options.quick else 100_000, 5 if options.quick else 25))


if __name__ == "__main__":
    main()
