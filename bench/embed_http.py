"""Embedding single 512×384 JPEGs over HTTP: embed-service against the service that people write first.

`python -m bench.embed_http [--quick]`. Both services run as processes on loopback with the same random ViT-B-32
weights; they are measured in turns, so that whatever else the machine does hits both, and medians of the ratios are
printed. Beside them the bare model: the same graph in the same precision, batches of 32, no HTTP and no decoding.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import table

SIZE = (512, 384)
CONCURRENCY = (1, 8, 32)
AIMS = {1: 3.2, 8: 3.0, 32: 3.3}
BARE_BATCH = 32

PLAIN_SERVICE = """
import io, sys
import open_clip, torch, uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

folder, port = sys.argv[1], int(sys.argv[2])
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
model.eval()
app = FastAPI()

@app.post("/embed")
def embed(images: UploadFile):
    picture = preprocess(Image.open(io.BytesIO(images.file.read())).convert("RGB"))
    with torch.no_grad():
        vector = model.encode_image(picture[None])[0]
    return {"vector": (vector / vector.norm()).tolist()}

uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
"""

MAKE_WEIGHTS = """
import json, sys
import open_clip, torch
from safetensors.torch import save_file

torch.manual_seed(0)
model = open_clip.create_model("ViT-B-32")
save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{sys.argv[1]}/open_clip_model.safetensors")
preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": preprocess}
with open(f"{sys.argv[1]}/open_clip_config.json", "w") as file:
    json.dump(config, file)
"""

BARE_MODEL = """
import sys, time
from pathlib import Path
import numpy as np
from embed_service.runners import OpenVinoRunner

graph, precision, batch, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
run = OpenVinoRunner(Path(graph), precision, threads, side_by_side=False)
pixels = list(np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8))
run(pixels)
print("ready", flush=True)
for line in sys.stdin:
    end, count, started = time.perf_counter() + float(line), 0, time.perf_counter()
    while time.perf_counter() < end:
        run(pixels)
        count += batch
    print(count / (time.perf_counter() - started), flush=True)
"""


def make_pictures(count: int) -> list[bytes]:
    """Return JPEGs with the detail of photographs: noise of every scale, the coarse ones strongest (40–60 kB)."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        total = np.zeros((SIZE[1], SIZE[0], 3))
        for step in (128, 64, 32, 16, 8, 4, 2, 1):
            noise = rng.normal(0, step**0.75 * 1.6, (-(-SIZE[1] // step), -(-SIZE[0] // step), 3))
            planes = [
                Image.fromarray(noise[..., c].astype(np.float32)).resize(SIZE, Image.Resampling.BICUBIC)
                for c in range(3)
            ]
            total += np.stack([np.asarray(plane) for plane in planes], axis=-1)
        file = io.BytesIO()
        Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        pictures.append(file.getvalue())
    return pictures


def as_request(path: str, picture: bytes) -> bytes:
    """Return a whole HTTP request with `picture` as the multipart file `images`."""
    mark = "pixelgate-bench-boundary"
    body = (
        (
            f'--{mark}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + picture
        + f"\r\n--{mark}--\r\n".encode()
    )
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={mark}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection: sends a request, resolves with the answer's body. As little work as possible."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[bytes] | None = None
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Resolve the answer when all of it is there."""
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        lower = bytes(self.buffer[:head]).lower()
        start = lower.index(b"content-length:") + len(b"content-length:")
        end = lower.find(b"\r\n", start)
        length = int(lower[start : end if end > 0 else head])
        if len(self.buffer) >= head + 4 + length and self.answer is not None:
            body = bytes(self.buffer[head + 4 : head + 4 + length])
            status = int(self.buffer[9:12])
            del self.buffer[: head + 4 + length]
            if status == 200:
                self.answer.set_result(body)
            else:
                self.answer.set_exception(RuntimeError(f"{status}: {body[:300]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the answer that will not come."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error or ConnectionError("closed"))

    async def ask(self, request: bytes) -> bytes:
        """Return the body of the answer to `request`."""
        assert self.transport is not None
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


async def load(port: int, requests: list[bytes], concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Keep `concurrency` requests under way for `seconds`; return answers per second, and each one's seconds."""
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(concurrency)]
    latencies: list[float] = []
    turn = iter(range(1 << 60))
    started = time.perf_counter()
    end = started + seconds

    async def one(connection: Connection) -> None:
        while time.perf_counter() < end:
            sent = time.perf_counter()
            await connection.ask(requests[next(turn) % len(requests)])
            latencies.append(time.perf_counter() - sent)

    try:
        await asyncio.gather(*(one(connection) for connection in connections))
    finally:
        for connection in connections:
            if connection.transport is not None:
                connection.transport.close()
    return len(latencies) / (time.perf_counter() - started), latencies


async def vectors(port: int, requests: list[bytes]) -> list[dict[str, Any]]:
    """Return each request's answer as JSON."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    answers = [json.loads(await connection.ask(request)) for request in requests]
    assert connection.transport is not None
    connection.transport.close()
    return answers


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(command: list[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `command` until the block ends."""
    child = subprocess.Popen(command, text=True, **more)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(url: str, child: subprocess.Popen[str], timeout_s: float = 300) -> float:
    """Wait until `url` answers; return how many seconds it took."""
    started = time.perf_counter()
    while time.perf_counter() - started < timeout_s:
        if child.poll() is not None:
            raise SystemExit(f"{child.args!r} ended with {child.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return time.perf_counter() - started
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{url} did not answer within {timeout_s} s")


def peak_mb(pid: int) -> int:
    """Return the largest resident memory that a process has had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0


def cpu_ms(pid: int) -> float:
    """Return the processor time that a process has used, in milliseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: list[float], share: float) -> float:
    """Return the value below which `share` of `values` lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def run(rounds: int, seconds: float, work: Path) -> dict[str, Any]:
    """Measure everything; `work` keeps weights and converted graphs."""
    weights = work / "ViT-B-32-random"
    if not (weights / "open_clip_config.json").exists():
        weights.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", MAKE_WEIGHTS, str(weights)], check=True, stderr=subprocess.DEVNULL)
    pictures = make_pictures(64)
    environment = {
        **os.environ,
        "PIXELGATE_CLIP_MODEL": str(weights),
        "PIXELGATE_RESNET_MODEL": "none",
        "PIXELGATE_MODEL_DIR": str(work),
        "PIXELGATE_LOG_LEVEL": "WARNING",
    }
    environment.pop("PIXELGATE_SERVICE_TOKEN", None)
    port, plain_port = free_port(), free_port()
    service = [sys.executable, "-m", "embed_service.main"]
    with ExitStack() as stack:
        environment["PIXELGATE_EMBED_PORT"] = str(port)
        with process(service, env=environment) as first:
            first_start_s = wait_for(f"http://127.0.0.1:{port}/readyz", first)
        ours = stack.enter_context(process(service, env=environment))
        start_s = wait_for(f"http://127.0.0.1:{port}/readyz", ours)
        plain = stack.enter_context(
            process([sys.executable, "-c", PLAIN_SERVICE, str(weights), str(plain_port)], stderr=subprocess.DEVNULL)
        )
        plain_start_s = wait_for(f"http://127.0.0.1:{plain_port}/openapi.json", plain)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            about = json.load(answer)["models"][0]
        (graph,) = sorted(work.glob("cache/embed/clip-*/image.xml"), key=lambda path: path.stat().st_mtime)[-1:]
        threads = len(os.sched_getaffinity(0))
        bare = stack.enter_context(
            process(
                [sys.executable, "-c", BARE_MODEL, str(graph), about["precision"], str(BARE_BATCH), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert bare.stdin is not None
        assert bare.stdout is not None
        bare.stdout.readline()

        requests = [as_request("/v1/embed/images", picture) for picture in pictures]
        plain_requests = [as_request("/embed", picture) for picture in pictures]
        mine = [
            np.frombuffer(base64.b64decode(answer["items"][0]["vector"]), "<f4")
            for answer in asyncio.run(vectors(port, requests))
        ]
        theirs = [np.array(answer["vector"]) for answer in asyncio.run(vectors(plain_port, plain_requests))]
        cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(mine, theirs, strict=True)]

        rows: dict[int, dict[str, list[float]]] = {
            concurrency: {
                name: []
                for name in (
                    *("ours", "ours_p50_ms", "ours_cpu_ms"),
                    *("plain", "plain_p50_ms", "plain_cpu_ms"),
                    "ratio",
                )
            }
            for concurrency in CONCURRENCY
        }
        bare_rates: list[float] = []
        of_bare: list[float] = []
        for _ in range(rounds):
            for concurrency in CONCURRENCY:
                row = rows[concurrency]
                for name, child, where, what in (
                    ("ours", ours, port, requests),
                    ("plain", plain, plain_port, plain_requests),
                ):
                    used = cpu_ms(child.pid)
                    rate, latencies = asyncio.run(load(where, what, concurrency, seconds))
                    row[name].append(rate)
                    row[f"{name}_p50_ms"].append(1000 * quantile(latencies, 0.5))
                    row[f"{name}_cpu_ms"].append((cpu_ms(child.pid) - used) / len(latencies))
                row["ratio"].append(row["ours"][-1] / row["plain"][-1])
                if concurrency == max(CONCURRENCY):
                    # The bare model before and after its comparison: what else runs here changes within seconds.
                    around = [_bare(bare, seconds / 2)]
                    again, _ = asyncio.run(load(port, requests, concurrency, seconds))
                    around.append(_bare(bare, seconds / 2))
                    bare_rates.append(statistics.mean(around))
                    of_bare.append(again / statistics.mean(around))
        return {
            "about": about,
            "load_average": os.getloadavg()[0],
            "first_start_s": first_start_s,
            "start_s": start_s,
            "plain_start_s": plain_start_s,
            "cosine_min": min(cosines),
            "rows": rows,
            "bare_per_s": bare_rates,
            "of_bare": of_bare,
            "peak_mb": {"ours": peak_mb(ours.pid), "plain": peak_mb(plain.pid), "bare": peak_mb(bare.pid)},
        }


def _bare(child: subprocess.Popen[str], seconds: float) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{seconds}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    about, median = result["about"], statistics.median
    print(f"embed-service by {about['backend']} in {about['precision']} on {about['device']}")
    table.show(
        ["concurrency", "ours/s", "p50 ms", "cpu ms", "plain/s", "p50 ms", "cpu ms", "ratio", "range", "aim"],
        [
            [
                concurrency,
                median(row["ours"]),
                median(row["ours_p50_ms"]),
                median(row["ours_cpu_ms"]),
                median(row["plain"]),
                median(row["plain_p50_ms"]),
                median(row["plain_cpu_ms"]),
                f"{median(row['ratio']):.2f}",
                f"{min(row['ratio']):.2f}–{max(row['ratio']):.2f}",
                AIMS[concurrency],
            ]
            for concurrency, row in result["rows"].items()
        ],
    )
    print(
        f"bare model, batch {BARE_BATCH}: {median(result['bare_per_s']):.1f}/s; over HTTP at {max(CONCURRENCY)}: "
        f"{100 * median(result['of_bare']):.0f} % of it "
        f"({100 * min(result['of_bare']):.0f}–{100 * max(result['of_bare']):.0f}; aim 85)"
    )
    print(f"cosine to open_clip in fp32, smallest of 64 pictures: {result['cosine_min']:.5f} (aim 0.999)")
    print(
        f"start: first {result['first_start_s']:.1f} s (converts), then {result['start_s']:.1f} s; "
        f"plain {result['plain_start_s']:.1f} s"
    )
    print("peak memory, MB: " + ", ".join(f"{name} {size}" for name, size in result["peak_mb"].items()))
    print(f"load average at the end: {result['load_average']:.1f} (cpu ms: processor time for each picture)")


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
