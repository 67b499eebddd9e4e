"""(i) Small, medium and preview of 12-megapixel photographs: storage-service's own code against Pillow.

Every way writes three JPEG files, and has a process and one thread of its own; they take turns with each photograph.
Ours decodes every pixel at full size, as proof that the file is whole, reads EXIF and computes two hashes besides.
Ratios are of processor time, which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from bench.memory import peak_mb
from bench.photographs import photographs
from bench.table import show

SIDES_PX = {"preview": 1024, "medium": 300, "small": 150}
Way = Callable[[Path, Path], None]


def ours(path: Path, folder: Path) -> None:
    """Do what a decoder of storage-service does with a picture that arrives."""
    from pixelgate_common.images import DecodeLimits
    from storage_service.pictures import process

    process(path, folder, DecodeLimits())


def pillow(path: Path, folder: Path) -> None:
    """Decode as a whole and shrink that for each variant, as most code does."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    for name, side_px in SIDES_PX.items():
        variant = picture.copy()
        variant.thumbnail((side_px, side_px))
        variant.save(folder / name, "JPEG", quality=85)


def pillow_draft(path: Path, folder: Path) -> None:
    """Let the JPEG decoder shrink, and make each variant from the one before: the fastest that Pillow can do."""
    with Image.open(path) as image:
        image.thumbnail((SIDES_PX["preview"],) * 2)  # by `draft`
        picture = image.convert("RGB")
    for name, side_px in SIDES_PX.items():
        picture.thumbnail((side_px, side_px))
        picture.save(folder / name, "JPEG", quality=85)


WAYS: dict[str, Way] = {"Pillow": pillow, "Pillow, draft and chain": pillow_draft, "storage-service": ours}


def work(way: str, pipe: Connection) -> None:
    """Take paths from `pipe` until None comes; answer with its seconds, wall and processor, at last the peak."""
    os.environ["VIPS_CONCURRENCY"] = "1"
    with tempfile.TemporaryDirectory(prefix="pixelgate-bench-") as folder:
        while (path := pipe.recv()) is not None:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            WAYS[way](path, Path(folder))
            pipe.send((time.perf_counter() - begun, time.process_time() - begun_cpu))
    pipe.send(peak_mb())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    count = 3 if parser.parse_args().quick else 12
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for way in WAYS:
        pipes[way], theirs = spawn.Pipe()
        workers.append(spawn.Process(target=work, args=(way, theirs), daemon=True))
        workers[-1].start()
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="pixelgate-bench-") as folder:
        for number, data in enumerate(photographs(count + 1)):
            path = Path(folder, f"{number}.jpg")
            path.write_bytes(data)
            for way, pipe in pipes.items():
                pipe.send(path)
                if not pipe.poll(120):
                    raise TimeoutError(f"{way} took more than two minutes for a picture")
                took_s = pipe.recv()
                if number:  # the first one pays for imports and tables
                    took[way].append(took_s)
            path.unlink()
    print(f"{count} photographs of 12 megapixels to {', '.join(map(str, SIDES_PX.values()))} px, one thread each\n")
    rows = []
    base = statistics.mean(cpu_s for _, cpu_s in took["Pillow"])
    for way, pipe in pipes.items():
        pipe.send(None)
        wall_s, cpu_s = (statistics.mean(times) for times in zip(*took[way], strict=True))
        rows.append([way, wall_s * 1000, cpu_s * 1000, f"{base / cpu_s:.2f}", round(pipe.recv())])
    for worker in workers:
        worker.join(10)
    show(["way", "ms each", "CPU ms", "faster", "peak MB"], rows)


if __name__ == "__main__":
    main()
