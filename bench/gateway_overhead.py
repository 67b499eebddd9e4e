"""(d) What the gateway adds: the same answer through it and from the service behind it, one at a time and by eights."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.photographs import photographs
from bench.table import show
from tests.system import free_port, running, upload, wait_analysed


async def measure(
    make: Callable[[httpx.AsyncClient], httpx.Request], concurrency: int, requests: int
) -> tuple[float, float]:
    """Return the median latency in ms and the requests per second."""
    taken: list[float] = []
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=concurrency)) as client:
        left = iter(range(requests))

        async def work() -> None:
            for _ in left:
                start = time.perf_counter()
                answer = await client.send(make(client))
                taken.append(time.perf_counter() - start)
                answer.raise_for_status()

        await asyncio.gather(*(work() for _ in range(concurrency)))
        taken.clear()
        left = iter(range(requests))
        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        took_s = time.perf_counter() - start
    return statistics.median(taken) * 1000, requests / took_s


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    requests, rounds = (40, 1) if options.quick else (300, 3)
    storage_port, embed_port = free_port(), free_port()
    env = {
        "PIXELGATE_STORAGE_PORT": str(storage_port),
        "PIXELGATE_EMBED_PORT": str(embed_port),
    }
    rows = []
    with tempfile.TemporaryDirectory() as home, running(Path(home) / "data", env) as system, system.client() as client:
        outcomes = upload(client, [(f"{n}.jpg", data) for n, data in enumerate(photographs(6))])
        wait_analysed(client)
        image_id = outcomes[0]["image"]["id"]
        # The launcher makes a token for each start; who may read the process's environment may read it there.
        inner = {"X-Pixelgate-Service-Token": system.process("storage").environ()["PIXELGATE_SERVICE_TOKEN"]}
        storage, embed = f"http://127.0.0.1:{storage_port}", f"http://127.0.0.1:{embed_port}"
        pairs: dict[
            str, tuple[Callable[[httpx.AsyncClient], httpx.Request], Callable[[httpx.AsyncClient], httpx.Request]]
        ] = {
            "a record": (
                lambda c: c.build_request("GET", f"{system.url}/v1/images/{image_id}"),
                lambda c: c.build_request("GET", f"{storage}/v1/images/{image_id}", headers=inner),
            ),
            "a preview": (
                lambda c: c.build_request("GET", f"{system.url}/v1/images/{image_id}/preview"),
                lambda c: c.build_request("GET", f"{storage}/v1/images/{image_id}/preview", headers=inner),
            ),
            "a text's vector": (
                lambda c: c.build_request(
                    "POST",
                    f"{system.url}/v1/embeddings",
                    json={"input": "a red bus", "model": "clip", "encoding_format": "base64"},
                ),
                lambda c: c.build_request(
                    "POST", f"{embed}/v1/embed/texts", json={"texts": ["a red bus"]}, headers=inner
                ),
            ),
        }
        for name, (through, direct) in pairs.items():
            for concurrency in (1, 8):
                runs = [
                    (
                        asyncio.run(measure(direct, concurrency, requests)),
                        asyncio.run(measure(through, concurrency, requests)),
                    )
                    for _ in range(rounds)
                ]
                direct_ms = statistics.median(run[0][0] for run in runs)
                through_ms = statistics.median(run[1][0] for run in runs)
                rate = statistics.median(run[1][1] / run[0][1] for run in runs)
                rows.append([name, concurrency, direct_ms, through_ms, through_ms - direct_ms, rate])
        memory = system.memory_mb()
    show(["answer", "concurrency", "direct p50 ms", "gateway p50 ms", "added ms", "rate, gateway/direct"], rows)
    print(f"\nmemory, MiB: {', '.join(f'{name} {mb:.0f}' for name, mb in memory.items())}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
