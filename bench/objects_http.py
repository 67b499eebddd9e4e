"""Objects in 640 × 480 photographs over HTTP at concurrency 8, against ultralytics' predict() called one by one.

`python -m bench.objects_http [--quick]`. Both have the same random YOLO26 nano weights at 640 px and the same JPEG
files, and decode them. They are measured in turns, so that whatever else the machine does hits both, and medians of the
ratios are printed. detect-service runs as a process on loopback; predict() in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import table
from bench.embed_http import as_request, free_port, load, peak_mb, process, quantile, wait_for
from bench.photographs import photographs

CONCURRENCY = 8
AIM = 3.0

MAKE_WEIGHTS = """
import sys
import torch
from ultralytics.nn.tasks import DetectionModel

torch.manual_seed(0)
model = DetectionModel("yolo26n.yaml", nc=80, verbose=False)
model.names = {number: f"thing {number}" for number in range(80)}
model.args = {"imgsz": 640, "task": "detect"}
# Statistics of normalization as of a trained network: signals that die on their way make torch slower than it is.
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = None
with torch.no_grad():
    model.train()(torch.rand(2, 3, 320, 320))
model.eval()
torch.save({"model": model, "train_args": {"imgsz": 640}, "epoch": -1}, sys.argv[1])
"""

ONE_BY_ONE = """
import io, sys, time
from pathlib import Path
from PIL import Image
from ultralytics import YOLO

model = YOLO(sys.argv[1])
files = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
def one(data):
    model.predict(Image.open(io.BytesIO(data)), verbose=False, save=False, device="cpu")
for data in files[:3]:
    one(data)
print("ready", flush=True)
for line in sys.stdin:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(line):
        one(files[count % len(files)])
        count += 1
    print(count / (time.perf_counter() - started), flush=True)
"""


def quiet_environment(work: Path) -> dict[str, str]:
    """Return the environment of processes that may neither fetch nor write home."""
    settings = str(work / "ultralytics")
    return {
        **os.environ,
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "False",
        "YOLO_CONFIG_DIR": settings,
        "MPLCONFIGDIR": settings,
        "U2NET_HOME": settings,
    }


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[bytes]:
    """Write `count` photographs of `size` as JPEG files; return them."""
    import io

    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, data in enumerate(photographs(count)):
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=88)
        (folder / f"{number:03}.jpg").write_bytes(file.getvalue())
        pictures.append(file.getvalue())
    return pictures


def ask(child: subprocess.Popen[str], seconds: float) -> float:
    """Have a child measure itself for `seconds`; return its rate."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{seconds}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def run(rounds: int, seconds: float, work: Path) -> dict[str, Any]:
    """Measure everything; `work` keeps weights and converted graphs."""
    environment = quiet_environment(work)
    weights = work / "yolo26n-random.pt"
    if not weights.exists():
        subprocess.run([sys.executable, "-c", MAKE_WEIGHTS, str(weights)], check=True, env=environment)
    pictures = write_pictures(work / "pictures-640", 16, (640, 480))
    requests = [as_request("/v1/objects", picture) for picture in pictures]
    port = free_port()
    service = {
        **environment,
        "PIXELGATE_OBJECTS_MODEL": str(weights),
        "PIXELGATE_CUTOUT_MODEL": "none",
        "PIXELGATE_MODEL_DIR": str(work),
        "PIXELGATE_LOG_LEVEL": "WARNING",
        "PIXELGATE_DETECT_PORT": str(port),
    }
    service.pop("PIXELGATE_SERVICE_TOKEN", None)
    with ExitStack() as stack:
        ours = stack.enter_context(process([sys.executable, "-m", "detect_service.main"], env=service))
        start_s = wait_for(f"http://127.0.0.1:{port}/readyz", ours)
        theirs = stack.enter_context(
            process(
                [sys.executable, "-c", ONE_BY_ONE, str(weights), str(work / "pictures-640")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        assert theirs.stdout is not None
        while theirs.stdout.readline().strip() != "ready":
            if theirs.poll() is not None:
                raise SystemExit(f"predict() ended with {theirs.returncode}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            about = json.load(answer)["models"][0]
        asyncio.run(load(port, requests, CONCURRENCY, 1.0))
        rates: dict[str, list[float]] = {"ours": [], "theirs": [], "ratio": [], "p50_ms": []}
        for _ in range(rounds):
            rate, latencies = asyncio.run(load(port, requests, CONCURRENCY, seconds))
            rates["ours"].append(rate)
            rates["theirs"].append(ask(theirs, seconds))
            rates["ratio"].append(rates["ours"][-1] / rates["theirs"][-1])
            rates["p50_ms"].append(1000 * quantile(latencies, 0.5))
        return {
            "about": about,
            "start_s": start_s,
            "load_average": os.getloadavg()[0],
            "peak_mb": {"ours": peak_mb(ours.pid), "theirs": peak_mb(theirs.pid)},
            **rates,
        }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    median, about = statistics.median, result["about"]
    print(f"detect-service by {about['backend']} in {about['precision']}; load average {result['load_average']:.1f}")
    table.show(
        ["", "pictures/s", "p50 ms", "peak MB"],
        [
            [
                f"detect-service, concurrency {CONCURRENCY}",
                median(result["ours"]),
                median(result["p50_ms"]),
                result["peak_mb"]["ours"],
            ],
            [
                "ultralytics predict() one by one",
                median(result["theirs"]),
                1000 / median(result["theirs"]),
                result["peak_mb"]["theirs"],
            ],
        ],
    )
    ratios = result["ratio"]
    print(f"ratio {median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}); aim {AIM:g}")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test, not a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of load for each figure and round")
    parser.add_argument("--work", type=Path, help="keep weights and graphs here between runs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixelgate-bench-")))
        result = run(rounds, seconds, work)
    show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
