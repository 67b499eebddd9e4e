"""Captions per second over HTTP: caption-service against transformers' generate() in fp32, one picture at a time.

`python -m bench.caption_http [--quick]`. Both run as processes on the same BLIP base of random weights and make 20 new
tokens of each 512×384 JPEG, decoding included; they are measured in turns, so that whatever else the machine does hits
both, and medians of the ratios are printed.
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
from bench.embed_http import as_request, cpu_ms, free_port, load, make_pictures, peak_mb, process, quantile, wait_for

CONCURRENCY = (1, 8)
AIMS = {8: 2.5}
TOKENS = 20

MAKE_WEIGHTS = """
import sys
import torch, transformers

folder = sys.argv[1]
tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(30517))]
transformers.BertTokenizer(
    vocab={token: number for number, token in enumerate(tokens)}, bos_token="[DEC]", extra_special_tokens=["[ENC]"]
).save_pretrained(folder)
text = dict(bos_token_id=30522, eos_token_id=2, sep_token_id=3, pad_token_id=0, num_attention_heads=12)
vision = dict(image_size=384, initializer_range=0.02)
torch.manual_seed(0)
config = transformers.BlipConfig(text_config=text, vision_config=vision)
transformers.BlipImageProcessor(size=dict(height=384, width=384)).save_pretrained(folder)
transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
"""

GENERATE = """
import io, sys, time
from pathlib import Path
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, BlipImageProcessor, BertTokenizer

folder, pictures, tokens = sys.argv[1], sorted(Path(sys.argv[2]).iterdir()), int(sys.argv[3])
processor = BlipProcessor(BlipImageProcessor.from_pretrained(folder), BertTokenizer.from_pretrained(folder))
model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

def caption(path):
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    inputs = processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens)
    assert ids.shape[1] == tokens + 1, ids.shape
    return processor.decode(ids[0], skip_special_tokens=True)

caption(pictures[0])
print("ready", flush=True)
turn = 0
for line in sys.stdin:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < float(line):
        caption(pictures[turn % len(pictures)])
        turn += 1
        count += 1
    print(count / (time.perf_counter() - started), count, flush=True)
"""


def run(rounds: int, seconds: float, work: Path) -> dict[str, Any]:
    """Measure everything; `work` keeps weights and converted graphs."""
    weights = work / "blip-base-random"
    if not (weights / "model.safetensors").exists():
        weights.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", MAKE_WEIGHTS, str(weights)], check=True, stderr=subprocess.DEVNULL)
    pictures = make_pictures(16)
    folder = work / "pictures"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        (folder / f"{number:03}.jpg").write_bytes(picture)
    port = free_port()
    environment = {
        **os.environ,
        "PIXELGATE_CAPTION_MODEL": str(weights),
        "PIXELGATE_MODEL_DIR": str(work),
        "PIXELGATE_CAPTION_PORT": str(port),
        "PIXELGATE_LOG_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("PIXELGATE_SERVICE_TOKEN", None)
    service = [sys.executable, "-m", "caption_service.main"]
    ready = f"http://127.0.0.1:{port}/readyz"
    with ExitStack() as stack:
        with process(service, env=environment) as first:
            first_start_s = wait_for(ready, first, timeout_s=1800)
        ours = stack.enter_context(process(service, env=environment))
        start_s = wait_for(ready, ours)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            about = json.load(answer)["models"][0]
        plain = stack.enter_context(
            process(
                [sys.executable, "-c", GENERATE, str(weights), str(folder), str(TOKENS)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        assert plain.stdout is not None
        assert plain.stdout.readline().strip() == "ready"
        path = f"/v1/captions?min_words={TOKENS}&max_words={TOKENS}"
        requests = [as_request(path, picture) for picture in pictures]
        for concurrency in CONCURRENCY:  # each size of batch is prepared once
            asyncio.run(load(port, requests, concurrency, 0.1))
        rows: dict[int, dict[str, list[float]]] = {
            concurrency: {name: [] for name in ("ours", "p50_ms", "cpu_ms", "plain", "plain_cpu_ms", "ratio")}
            for concurrency in CONCURRENCY
        }
        for _ in range(rounds):
            for concurrency in CONCURRENCY:
                row = rows[concurrency]
                used = cpu_ms(ours.pid)
                rate, latencies = asyncio.run(load(port, requests, concurrency, seconds))
                row["ours"].append(rate)
                row["p50_ms"].append(1000 * quantile(latencies, 0.5))
                row["cpu_ms"].append((cpu_ms(ours.pid) - used) / len(latencies))
                used = cpu_ms(plain.pid)
                plain_rate, count = _generate(plain, seconds)
                row["plain"].append(plain_rate)
                row["plain_cpu_ms"].append((cpu_ms(plain.pid) - used) / count)
                row["ratio"].append(rate / plain_rate)
        return {
            "about": about,
            "load_average": os.getloadavg()[0],
            "first_start_s": first_start_s,
            "start_s": start_s,
            "rows": rows,
            "peak_mb": {"ours": peak_mb(ours.pid), "generate()": peak_mb(plain.pid)},
        }


def _generate(child: subprocess.Popen[str], seconds: float) -> tuple[float, int]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{seconds}\n")
    child.stdin.flush()
    rate, count = child.stdout.readline().split()
    return float(rate), int(count)


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    about, median = result["about"], statistics.median
    print(f"caption-service by {about['backend']} in {about['precision']} on {about['device']}; {TOKENS} new tokens")
    table.show(
        ["concurrency", "ours/s", "p50 ms", "cpu ms", "generate()/s", "cpu ms", "ratio", "range", "aim"],
        [
            [
                concurrency,
                median(row["ours"]),
                median(row["p50_ms"]),
                median(row["cpu_ms"]),
                median(row["plain"]),
                median(row["plain_cpu_ms"]),
                f"{median(row['ratio']):.2f}",
                f"{min(row['ratio']):.2f}–{max(row['ratio']):.2f}",
                AIMS.get(concurrency, "–"),
            ]
            for concurrency, row in result["rows"].items()
        ],
    )
    print(f"start: first {result['first_start_s']:.1f} s (converts), then {result['start_s']:.1f} s")
    print("peak memory, MB: " + ", ".join(f"{name} {size}" for name, size in result["peak_mb"].items()))
    print(f"load average at the end: {result['load_average']:.1f} (cpu ms: processor time for each picture)")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test, not a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of load for each figure and round")
    parser.add_argument("--work", type=Path, help="keep weights and graphs here between runs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rounds, seconds = (1, 4.0) if options.quick else (options.rounds, options.seconds)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixelgate-bench-")))
        result = run(rounds, seconds, work)
    show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
