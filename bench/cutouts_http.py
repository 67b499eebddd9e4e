"""Cutouts of 640 × 480 photographs over HTTP at concurrency 8, against rembg's remove() called one by one.

`python -m bench.cutouts_http [--quick]`. Both have the same random weights in the layout of u2netp (U²-Net with all
stages narrow, 320 px) and the same JPEG files, decode them, and answer with a PNG. They are measured in turns, so that
whatever else the machine does hits both, and medians of the ratios are printed. detect-service runs as a process on
loopback; remove() in a process of its own, on onnxruntime with all its threads.
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
from bench.objects_http import ask, quiet_environment, write_pictures

CONCURRENCY = 8

MAKE_WEIGHTS = """
import sys, warnings
import torch
from starter_models.u2net import Sigmoids, U2Net

warnings.simplefilter("ignore")
torch.manual_seed(0)
network = U2Net([(16, 64)] * 6)
# Statistics of normalization as of a trained network, so that signals neither die nor explode on their way.
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = None
with torch.no_grad():
    network.train()(torch.rand(2, 3, 320, 320))
names = ["d0", "d1", "d2", "d3", "d4", "d5", "d6"]
torch.onnx.export(
    Sigmoids(network).eval(), (torch.zeros(1, 3, 320, 320),), sys.argv[1], dynamo=False, opset_version=17,
    input_names=["input"], output_names=names, dynamic_axes={name: {0: "n"} for name in ["input", *names]},
)
"""

ONE_BY_ONE = """
import sys, time
from pathlib import Path
from rembg import new_session, remove

session = new_session("u2netp")
files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
for data in files[:2]:
    remove(data, session=session)
print("ready", flush=True)
for line in sys.stdin:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(line):
        remove(files[count % len(files)], session=session)
        count += 1
    print(count / (time.perf_counter() - started), flush=True)
"""


def run(rounds: int, seconds: float, work: Path) -> dict[str, Any]:
    """Measure everything; `work` keeps weights and converted graphs."""
    weights = work / "cutout" / "u2netp.onnx"
    environment = {**quiet_environment(work), "U2NET_HOME": str(weights.parent)}
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", MAKE_WEIGHTS, str(weights)], check=True, env=environment)
    pictures = write_pictures(work / "pictures-640", 16, (640, 480))
    requests = [as_request("/v1/cutouts", picture) for picture in pictures]
    port = free_port()
    service = {
        **environment,
        "PIXELGATE_OBJECTS_MODEL": "none",
        "PIXELGATE_CUTOUT_MODEL": "u2netp",
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
                [sys.executable, "-c", ONE_BY_ONE, str(work / "pictures-640")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        assert theirs.stdout is not None
        while theirs.stdout.readline().strip() != "ready":
            if theirs.poll() is not None:
                raise SystemExit(f"remove() ended with {theirs.returncode}")
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
                "rembg remove() one by one",
                median(result["theirs"]),
                1000 / median(result["theirs"]),
                result["peak_mb"]["theirs"],
            ],
        ],
    )
    ratios = result["ratio"]
    print(f"ratio {median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


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
