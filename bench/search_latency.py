"""(b) Search: latency, recall and memory by size, and searches while an import runs.

Everything is real but the pictures' files: Postgres with its schema, the vector index in the process, and the classes
that answer `POST /v1/search`, down to the JSON. Each size runs in a process of its own, so that peaks are its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pixelgate_common.contracts.storage import Search
from pixelgate_common.vectors import encode_vector
from pixelgate_local.postgres import LocalPostgres
from storage_service.database import Connection, Database
from storage_service.generations import Generations
from storage_service.limits import SearchLimits
from storage_service.migrations import migrate
from storage_service.search import Searcher
from storage_service.vectors.edge import EdgeVectorIndex

from bench.table import show

DIM, BATCH, CLUSTERS, HITS = 512, 64, 200, 24
FINGERPRINT = "bench:1"
Vectors = npt.NDArray[np.float32]
Case = dict[str, Any]
CASES: dict[str, Case] = {
    "no filter": {},
    "1 % filter in the index": {"filter": {"field": "tags", "eq": "rare"}},
    "1 % filter by Postgres": {"filter": {"field": "filename", "prefix": "rare-"}},
    "words and vector": {"words": {"text": "lighthouse"}},
}
"""What is asked beside the vector; one picture in a hundred is `rare`, one in fifty has a lighthouse."""


def clustered(count: int, seed: int) -> Vectors:
    """Return `count` unit vectors around CLUSTERS centres, as embeddings lie; shape (count, DIM)."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLUSTERS, DIM), dtype=np.float32)
    vectors = centres[random.integers(0, CLUSTERS, count)]
    vectors += 0.7 * random.standard_normal((count, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


async def add_pictures(conn: Connection, first: int, count: int) -> list[int]:
    """Insert rows like those of arrived pictures, and return their ids."""
    rows = await conn.execute(
        "WITH tick AS (UPDATE clock SET seq = seq + %(count)s RETURNING seq - %(count)s AS seq)"
        " INSERT INTO images (seq, sha256, filename, media_type, format, width, height, bytes, has_alpha, tags,"
        "   caption, object_counts, exif, phash, thumbhash)"
        " SELECT tick.seq + n, sha256(('bench ' || n + %(first)s)::bytea),"
        "   CASE WHEN n %% 100 = 0 THEN 'rare-' ELSE 'IMG_' END || n + %(first)s || '.jpg', 'image/jpeg', 'jpeg',"
        "   640 + n %% 4000, 480, 200000 + n, false,"
        "   CASE WHEN n %% 100 = 0 THEN '{rare,all}'::text[] ELSE '{all}'::text[] END,"
        "   'two dogs and a red bus beside a ' || CASE WHEN n %% 50 = 0 THEN 'lighthouse' ELSE 'house' END"
        "   || ' on a green field number ' || n %% 997, jsonb_build_object('dog', 2, 'bus', 1),"
        '   \'{"Make": "Canon", "Model": "EOS R5", "FNumber": 2.8, "ISOSpeedRatings": 100}\', n, \'\\x00\''
        " FROM tick, generate_series(1, %(count)s) AS n RETURNING id",
        {"count": count, "first": first},
    )
    return [row[0] for row in await rows.fetchall()]


async def insert(db: Database, generations: Generations, first: int, vectors: Vectors, batch: int = BATCH) -> float:
    """Add one picture for each vector, by batches as results come in; return the seconds that the vectors took."""
    took_s = 0.0
    for start in range(0, len(vectors), batch):
        part = vectors[start : start + batch]
        async with db.connection() as conn:
            ids = await add_pictures(conn, first + start, len(part))
        begun = time.perf_counter()
        async with db.connection() as conn:
            await generations.add_vectors(conn, "clip", FINGERPRINT, list(zip(ids, part, strict=True)))
        took_s += time.perf_counter() - begun
    return took_s


class Best:
    """The exact answers, by comparing every query with every vector in float32, a piece at a time."""

    def __init__(self, queries: Vectors, depth: int = 10) -> None:
        """Look for the `depth` best of each query."""
        self.queries, self.depth = queries, depth
        self.scores = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        self.numbers = np.zeros((len(queries), 0), dtype=np.int64)

    def add(self, numbers: npt.NDArray[np.int64], vectors: Vectors) -> None:
        """Take in `vectors` under these `numbers`."""
        scores = np.hstack([self.scores, self.queries @ vectors.T])
        names = np.hstack([self.numbers, np.broadcast_to(numbers, (len(self.queries), len(vectors)))])
        keep = np.argsort(-scores, axis=1)[:, : self.depth]
        self.scores = np.take_along_axis(scores, keep, axis=1)
        self.numbers = np.take_along_axis(names, keep, axis=1)


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[tuple[Database, Generations]]:
    """Yield an empty store on real disks."""
    with LocalPostgres(folder / "postgres") as postgres:
        await migrate(postgres.dsn)
        db = Database(postgres.dsn)
        await db.open()
        generations = Generations(db, EdgeVectorIndex(folder / "vectors"))
        await generations.start()
        async with db.connection() as conn:
            await generations.ensure(conn, "clip", FINGERPRINT, "bench", DIM)
        try:
            yield db, generations
        finally:
            await generations.close()
            await db.close()


async def latencies(searcher: Searcher, queries: Vectors, case: Case) -> tuple[list[float], list[list[int]]]:
    """Return milliseconds and the ids found, for each query."""
    took, found = [], []
    for query in queries:
        vector = {"space": "clip", "fingerprint": FINGERPRINT, "vector": encode_vector(query)}
        begun = time.perf_counter()
        page = await searcher.search(Search.model_validate({"vectors": [vector], "limit": HITS, **case}))
        page.model_dump_json()
        took.append((time.perf_counter() - begun) * 1000)
        found.append([hit.image.id for hit in page.hits])
    return took, found


async def index_alone(generations: Generations, queries: Vectors) -> list[float]:
    """Return the milliseconds that the vector index takes of a search without a filter."""
    generation = (await generations.overview())[0][0]
    took = []
    for query in queries:
        begun = time.perf_counter()
        await generations.index.search(generation.id, query, HITS + 9)
        took.append((time.perf_counter() - begun) * 1000)
    return took


def p95(values: list[float]) -> float:
    """Return the 95th percentile."""
    return float(np.percentile(values, 95))


async def measure(size: int, query_count: int, slices: int) -> dict[str, Any]:
    """Fill a store with `size` pictures, ask, and ask again while more are added."""
    answer: dict[str, Any] = {"size": size}
    queries = clustered(query_count, seed=1)
    best, best_rare = Best(queries), Best(queries)
    with tempfile.TemporaryDirectory(prefix="pixelgate-bench-") as name:
        async with store(Path(name)) as (db, generations):
            took_s = 0.0
            for first in range(0, size, 10_000):
                vectors = clustered(min(10_000, size - first), seed=1000 + first)
                took_s += await insert(db, generations, first, vectors, 100)  # so that ids count up with the rare ones
                ids = np.arange(first + 1, first + 1 + len(vectors))
                best.add(ids, vectors)
                best_rare.add(ids[99::100], vectors[99::100])
            answer["inserted_per_s"] = size / took_s
            async with db.connection() as conn:
                await conn.execute("ANALYZE")
            searcher = Searcher(db, generations, SearchLimits())
            answer["index"] = statistics.median(await index_alone(generations, queries))
            for name_of_case, case in CASES.items():
                await latencies(searcher, queries[:10], case)
                took, found = await latencies(searcher, queries, case)
                exact = {"no filter": best, "words and vector": None}.get(name_of_case, best_rare)
                answer[name_of_case] = {
                    "p50": statistics.median(took),
                    "p95": p95(took),
                    "recall": None if exact is None else recall(found, exact),
                }
            answer["during_import"] = await during_import(db, generations, searcher, queries, slices, size)
    answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return answer


def recall(found: list[list[int]], exact: Best) -> float:
    """Return the share of the exact ten best that are among the first ten found (ids count from 1)."""
    pairs = zip(found, exact.numbers.tolist(), strict=True)
    return statistics.mean(len(set(ids[: len(best)]) & set(best)) / len(best) for ids, best in pairs)


async def during_import(
    db: Database, generations: Generations, searcher: Searcher, queries: Vectors, slices: int, first: int
) -> dict[str, float]:
    """Return the p95 in ms of searches alone and beside an import that goes as fast as it can.

    Both are measured in turn, a slice of queries each, so that whatever else the machine does falls on both alike.
    """
    alone: list[float] = []
    beside: list[float] = []
    vectors = clustered(BATCH * 20, seed=5000)
    added, took_s = 0, 0.0

    async def add(stop: asyncio.Event) -> None:
        nonlocal added
        while not stop.is_set():
            await insert(db, generations, first + added, vectors[added % len(vectors) :][:BATCH])
            added += BATCH

    for part in np.array_split(queries, slices):
        alone += (await latencies(searcher, part, {}))[0]
        stop, begun = asyncio.Event(), time.perf_counter()
        adding = asyncio.create_task(add(stop))
        await asyncio.sleep(0.1)
        beside += (await latencies(searcher, part, {}))[0]
        stop.set()
        await adding
        took_s += time.perf_counter() - begun
    return {"idle": p95(alone), "busy": p95(beside), "added_per_s": added / took_s}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    query_count, slices = (40, 4) if options.quick else (300, 15)
    if options.size:
        print(json.dumps(asyncio.run(measure(options.size, query_count, slices))))
        return
    answers = []
    for size in (1_000, 5_000) if options.quick else (1_000, 10_000, 100_000):
        command = [sys.executable, "-m", "bench.search_latency", "--size", str(size)]
        command += ["--quick"] if options.quick else []
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        answers.append(json.loads(run.stdout.splitlines()[-1]))
    print(f"{DIM} values, {HITS} hits with their records as JSON; ms\n")
    rows = []
    for answer in answers:
        plain = answer["no filter"]["p50"]
        for case in CASES:
            one = answer[case]
            recalled = "-" if one["recall"] is None else f"{one['recall']:.4f}"
            rows.append([f"{answer['size']:,} {case}", one["p50"], one["p95"], one["p50"] / plain, recalled])
    show(["pictures, what is asked", "p50", "p95", "to no filter", "recall@10"], rows)
    print()
    rows = []
    for answer in answers:
        imported = answer["during_import"]
        rows.append(
            [
                f"{answer['size']:,}",
                answer["index"],
                imported["idle"],
                imported["busy"],
                imported["busy"] / imported["idle"],
                round(imported["added_per_s"]),
                round(answer["inserted_per_s"]),
                answer["peak_mb"],
            ]
        )
    head = [
        "pictures",
        "index alone p50",
        "idle p95",
        "p95 in import",
        "ratio",
        "added/s",
        "vectors/s alone",
        "peak MB",
    ]
    show(head, rows)


if __name__ == "__main__":
    main()
