"""(c) Pictures per second from the first upload until the last one is searchable, against what people write first.

The loop opens each photograph with Pillow, writes three thumbnails, and embeds it with the same open_clip model in
fp32. Pixelgate does the same over HTTP, and more: hashing, EXIF, perceptual hashes, Postgres, a second kind of vector
(`--resnet` to include it in the measurement).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.photographs import photographs
from bench.table import show
from tests.system import running, wait_analysed

STARTER_CLIP = Path(__file__).parent.parent / "starter-models" / "weights" / "clip"

LOOP = """
import resource, sys, time
from pathlib import Path
import open_clip, torch
from PIL import Image
folder, out, model_folder = map(Path, sys.argv[1:4])
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
model.eval()
start = time.perf_counter()
vectors = []
with torch.inference_mode():
    for file in sorted(folder.iterdir()):
        picture = Image.open(file).convert("RGB")
        for side in (1024, 300, 150):
            small = picture.copy()
            small.thumbnail((side, side))
            small.save(out / f"{file.stem}-{side}.jpg", quality=85)
        vectors.append(model.encode_image(preprocess(picture)[None]))
took = time.perf_counter() - start
print(len(vectors) / took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def loop(folder: Path, model: Path) -> tuple[float, float]:
    """Return the loop's pictures per second, and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-W", "ignore", "-c", LOOP, str(folder), out, str(model)]
        rate, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(rate), float(peak)


def pixelgate(folder: Path, model: Path, stages: str) -> tuple[float, float, float]:
    """Return pictures per second until stored, until searchable, and the peak of all services' memory in MiB."""
    files = sorted(folder.iterdir())
    with tempfile.TemporaryDirectory() as home:
        env = {"PIXELGATE_CLIP_MODEL": str(model), "PIXELGATE_STORAGE_STAGES": stages}
        with running(Path(home) / "data", env) as system, system.client() as client:
            peak, done = 0.0, threading.Event()

            def watch() -> None:
                nonlocal peak
                while not done.wait(0.5):
                    peak = max(peak, system.family_memory_mb())

            watcher = threading.Thread(target=watch)
            watcher.start()
            start = time.perf_counter()

            def send(file: Path) -> None:
                with file.open("rb") as body:
                    client.post("/v1/images", files={"files": (file.name, body)}).raise_for_status()

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(send, files))
            stored_s = time.perf_counter() - start
            wait_analysed(client)
            searchable_s = time.perf_counter() - start
            done.set()
            watcher.join()
    return len(files) / stored_s, len(files) / searchable_s, peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resnet", action="store_true", help="let Pixelgate make the second kind of vector too")
    parser.add_argument(
        "--model", type=Path, default=STARTER_CLIP, help="an open_clip folder; the starter weights by default"
    )
    options = parser.parse_args()
    count, runs = (12, 1) if options.quick else (60, 3)
    folder = Path(tempfile.mkdtemp(prefix="pixelgate-photographs-"))
    try:
        for number, data in enumerate(photographs(count)):
            (folder / f"{number:03}.jpg").write_bytes(data)
        size = statistics.mean(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(f"{count} photographs of 12 megapixels, {size:.1f} MB each, {runs} run(s), medians\n")
        loops, ours = [], []
        for _ in range(runs):  # in turn, so that a noisy minute of the machine hits both
            loops.append(loop(folder, options.model))
            ours.append(pixelgate(folder, options.model, "clip,resnet" if options.resnet else "clip"))
        base = statistics.median(rate for rate, _ in loops)
        stored = statistics.median(run[0] for run in ours)
        searchable = statistics.median(run[1] for run in ours)
        show(
            ["import", "pictures/s", "ratio", "peak MiB"],
            [
                ["Pillow + open_clip fp32 loop", base, 1.0, f"{max(peak for _, peak in loops):.0f}"],
                [
                    "Pixelgate, until stored",
                    stored,
                    stored / base,
                    f"{max(run[2] for run in ours):.0f} (all processes)",
                ],
                ["Pixelgate, until searchable", searchable, searchable / base, ""],
            ],
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
