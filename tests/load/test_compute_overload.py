"""Two hundred pictures at once for each service that analyses them, straight and through the gateway."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from starter_models.scenes import draw_scene

from tests.system import SERVICES, System, running, upload, wait_analysed

REQUESTS = 200
FIRST = 40_000
GROWTH_MB = 400
"""How much more memory than before the rush a service, with its child processes, may have held at its height.

200 pictures of 256 pixels are 40 MB when all of them are decoded at once; the rest is what a batch needs in the model.
"""
STRAIGHT = {
    "captions": ("caption", "/v1/captions", "images"),
    "objects": ("detect", "/v1/objects", "images"),
    "cutouts": ("detect", "/v1/cutouts", "images"),
    "palettes": ("color", "/v1/palettes", "images"),
}
THROUGH_GATEWAY = ("caption", "objects", "cutout", "palette")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("compute-load") / "data") as system:
        system.wait_all_ready()
        with system.client() as client:
            upload(client, [(f"{place}.jpg", draw_scene("test", place).jpeg()) for place in range(20)])
            wait_analysed(client)
        yield system


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [draw_scene("validation", FIRST + number, 256).jpeg() for number in range(REQUESTS)]


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def forget_peaks(system: System) -> dict[str, float]:
    """Return what each service holds now, in MiB, and have the kernel measure the height from here."""
    held = {}
    for service in SERVICES:
        processes = family(system.process(service))
        held[service] = sum(process.memory_info().rss for process in processes) / 2**20
        for process in processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return held


def peak_mb(system: System, service: str) -> float:
    """Return the most that a service and its children have held since `forget_peaks`, in MiB."""
    total = 0
    for process in family(system.process(service)):
        status = Path(f"/proc/{process.pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return total / 1024


async def one(client: httpx.AsyncClient, path: str, field: str, picture: bytes) -> int:
    """Ask once; the answer must be one, or say when to come again."""
    answer = await client.post(path, files={field: ("q.jpg", picture, "image/jpeg")})
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["content-type"] == "application/problem+json"
    else:
        assert answer.status_code == 200, answer.text
        assert answer.content
    return answer.status_code


async def rush(url: str, headers: dict[str, str], path: str, field: str, pictures: list[bytes]) -> Counter[int]:
    """Ask with all pictures at once, and then once more: that must be answered."""
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=240, limits=limits) as client:
        assert await one(client, path, field, pictures[0]) == 200, "not even alone"
        statuses = Counter(await asyncio.gather(*(one(client, path, field, picture) for picture in pictures)))
        assert await one(client, path, field, pictures[0]) == 200, "normal service has not come back"
    return statuses


@pytest.mark.parametrize("what", STRAIGHT)
async def test_a_service_answers_or_puts_off_and_keeps_its_size(
    system: System, pictures: list[bytes], what: str
) -> None:
    service, path, field = STRAIGHT[what]
    url, headers = system.inner(service)
    before, pid = forget_peaks(system), system.process(service).pid
    statuses = await rush(url, headers, path, field, pictures)
    assert statuses[200] > 0, statuses
    assert system.process(service).pid == pid, "it was started again"
    assert peak_mb(system, service) - before[service] < GROWTH_MB


@pytest.mark.parametrize("what", THROUGH_GATEWAY)
async def test_the_gateway_answers_or_puts_off_and_nothing_grows(
    system: System, pictures: list[bytes], what: str
) -> None:
    before, pids = forget_peaks(system), {service: system.process(service).pid for service in SERVICES}
    statuses = await rush(system.url, {}, f"/v1/{what}", "image", pictures)
    assert statuses[200] > 0, statuses
    assert {service: system.process(service).pid for service in SERVICES} == pids, "one was started again"
    for service in SERVICES:
        assert peak_mb(system, service) - before[service] < GROWTH_MB, service


async def test_searches_are_answered_while_captions_are_asked_for_without_end(
    system: System, pictures: list[bytes]
) -> None:
    limits = httpx.Limits(max_connections=REQUESTS + 4)
    async with httpx.AsyncClient(base_url=system.url, timeout=240, limits=limits) as client:
        over = asyncio.Event()
        asked = Counter[int]()

        async def keep_asking(picture: bytes) -> None:
            while not over.is_set():
                status = await one(client, "/v1/caption", "image", picture)
                asked[status] += 1
                if status != 200:
                    await asyncio.sleep(0.2)

        async with asyncio.TaskGroup() as group:
            for picture in pictures[:100]:
                group.create_task(keep_asking(picture))
            try:
                while asked.total() < 10:
                    await asyncio.sleep(0.05)
                for number in range(20):
                    answer = await client.get("/v1/search", params={"q": f"a dog and {number} cats"})
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["hits"]
            finally:
                over.set()
        assert asked[200] > 0, asked
