"""(h) One palette against 100,000 palettes by CIEDE2000: vectorised scikit-image, exhaustively, and by candidates.

Each way has a process and one thread of its own; they take turns with each query. Ratios are of processor time, which a
busy machine changes least. The memory is what ranking adds, at its peak, to the process that holds the palettes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
from pixelgate_common.colors import ColorTable, encode_palettes, lab_to_srgb, palette_distances, srgb_to_lab
from pixelgate_common.contracts.color import MAX_COLORS, MIN_SHARE

from bench.memory import peak_mb, start_peak_mb
from bench.table import show

CANDIDATES, HITS, THEMES = 2000, 24, 300
Floats = npt.NDArray[np.float32]
Ranking = tuple[npt.NDArray[np.intp], Floats]
"""The places of the closest palettes and their distances."""


def palettes(count: int, seed: int) -> tuple[Floats, Floats]:
    """Return palettes as pictures have them, of three families of colours: labs (count, 8, 3), shares (count, 8)."""
    random = np.random.default_rng(seed)
    themes = srgb_to_lab(np.random.default_rng(7).integers(0, 256, (THEMES, 3), dtype=np.uint8))
    families = themes[random.integers(0, THEMES, (count, 3))]
    labs = np.take_along_axis(families, random.integers(0, 3, (count, MAX_COLORS))[..., None], axis=1)
    labs = labs + random.normal(0, [14, 9, 9], labs.shape)
    shares = random.dirichlet(np.full(MAX_COLORS, 1.5), count)
    return srgb_to_lab(lab_to_srgb(labs)).astype(np.float32), shares.astype(np.float32)


def best(distances: Floats, places: npt.NDArray[np.intp] | None = None) -> Ranking:
    """Return the HITS closest of `distances`, which are those of `places` (None: of all, in order)."""
    closest = np.argpartition(distances, HITS)[:HITS]
    closest = closest[np.argsort(distances[closest], kind="stable")]
    return (closest if places is None else places[closest]), distances[closest]


Ranker = Callable[[Floats, Floats], Ranking]


def by_scikit_image(labs: Floats, shares: Floats) -> Ranker:
    """Rank by its vectorised function, one of the query's colours at a time, which is its fastest way."""
    from skimage.color import deltaE_ciede2000

    counts = shares >= np.float32(MIN_SHARE)

    def rank(query: Floats, weights: Floats) -> Ranking:
        total = np.zeros(len(labs))
        for color, weight in zip(query, weights / weights.sum(), strict=True):
            apart = deltaE_ciede2000(np.broadcast_to(color, labs.shape), labs)
            total += weight * np.where(counts, apart, np.inf).min(axis=1)
        return best(total.astype(np.float32))

    return rank


def exhaustively(labs: Floats, shares: Floats) -> Ranker:
    """Rank all by `palette_distances`."""
    return lambda query, weights: best(palette_distances(query, weights, labs, shares))


def by_candidates(labs: Floats, shares: Floats) -> Ranker:
    """Choose candidates by `ColorTable` and rank these by `palette_distances`, as a search does."""
    codes = encode_palettes(labs, shares)

    def rank(query: Floats, weights: Floats) -> Ranking:
        rough = ColorTable(query, weights).distances(codes)
        chosen = np.argpartition(rough, CANDIDATES)[:CANDIDATES]
        return best(palette_distances(query, weights, labs[chosen], shares[chosen]), chosen)

    return rank


BASE = "scikit-image, vectorised"
WAYS: dict[str, Callable[[Floats, Floats], Ranker]] = {
    BASE: by_scikit_image,
    "all of them, exactly": exhaustively,
    f"{CANDIDATES} candidates, exactly": by_candidates,
}


def work(way: str, size: int, pipe: Connection) -> None:
    """Rank each query that comes until None does.

    Answers with its seconds, those of the processor, and the ranking; at last with the MB that were added.
    """
    labs, shares = palettes(size, seed=1)
    rank = WAYS[way](labs, shares)
    before_mb = start_peak_mb()
    pipe.send("ready")
    while (query := pipe.recv()) is not None:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        ranking = rank(*query)
        pipe.send((time.perf_counter() - begun, time.process_time() - begun_cpu, ranking))
    pipe.send(peak_mb() - before_mb)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    size, queries = (20_000, 4) if parser.parse_args().quick else (100_000, 12)
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for way in WAYS:
        pipes[way], theirs = spawn.Pipe()
        workers.append(spawn.Process(target=work, args=(way, size, theirs), daemon=True))
        workers[-1].start()
        _received(pipes[way], way)
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    right = dict.fromkeys(WAYS, 0)
    for number, query in enumerate(zip(*palettes(queries + 1, seed=2), strict=True)):
        answers = {}
        for way, pipe in pipes.items():
            pipe.send(query)
            took_s, cpu_s, answers[way] = _received(pipe, way)
            if number:  # the first one pays for imports and tables
                took[way].append(took_s * 1000)
                cpu[way].append(cpu_s * 1000)
        farthest = answers[BASE][1][-1]
        for way, (_, distances) in answers.items():
            # By distance, not by place: palettes equally far are equally right.
            right[way] += int((distances <= farthest + 1e-3).sum()) if number else 0
    print(f"one palette of {MAX_COLORS} against {size:,} of {MAX_COLORS}, {queries} queries, one thread each\n")
    rows = []
    base = statistics.median(cpu[BASE])
    for way, pipe in pipes.items():
        pipe.send(None)
        wall, processor = statistics.median(took[way]), statistics.median(cpu[way])
        recall = f"{right[way] / queries / HITS:.4f}"
        rows.append([way, wall, processor, f"{base / processor:.1f}", recall, round(_received(pipe, way))])
    for worker in workers:
        worker.join(10)
    show(["way", "ms", "CPU ms", "faster", f"recall@{HITS}", "MB added"], rows)


def _received(pipe: Connection, way: str) -> Any:
    if not pipe.poll(300):
        raise TimeoutError(f"{way} gave no answer within five minutes")
    return pipe.recv()


if __name__ == "__main__":
    main()
