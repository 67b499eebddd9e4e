"""The services that analyse pictures can die at any time: what they were at work on is done by the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starter_models.scenes import draw_scene

from tests.evaluation.library import listed
from tests.system import EVERYTHING, System, running, stages, upload, wait_analysed

PICTURES = 60
FIRST = 31_000
STAGES_OF = {"caption": ("caption",), "detect": ("objects", "cutout"), "color": ("palette",)}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("compute-crash") / "data", EVERYTHING) as system:
        yield system.wait_all_ready()


def kill_at_work(system: System, client: httpx.Client, service: str) -> int:
    """Kill `service` while pictures are leased to one of its stages, and return its process id.

    It is stopped before the leases are looked at, so that it cannot finish what they were handed out for meanwhile.
    """
    deadline = time.monotonic() + 60
    process = system.process(service)
    while time.monotonic() < deadline:
        process.suspend()
        now = stages(client)
        if any(now[stage]["running"] > 0 for stage in STAGES_OF[service]):
            process.kill()
            return process.pid
        process.resume()
        time.sleep(0.01)
    raise AssertionError(f"{service} was never seen at work: {stages(client)}")


@pytest.mark.parametrize("victim", STAGES_OF)
def test_a_killed_service_is_back_and_every_picture_is_analysed_once(system: System, victim: str) -> None:
    number = list(STAGES_OF).index(victim)
    pictures = [
        (f"{victim}-{place}.jpg", draw_scene("test", FIRST + number * PICTURES + place, 256).jpeg())
        for place in range(PICTURES)
    ]
    with system.client() as client, ThreadPoolExecutor(1) as pool:
        before = client.get("/v1/stats").raise_for_status().json()["images"]
        # Work is let in when there is enough of it to be killed at.
        for stage in STAGES_OF[victim]:
            client.post(f"/v1/stages/{stage}/pause").raise_for_status()
        upload(client, pictures[:40])
        for stage in STAGES_OF[victim]:
            client.post(f"/v1/stages/{stage}/resume").raise_for_status()
        importing = pool.submit(upload, client, pictures[40:])
        killed = kill_at_work(system, client, victim)
        assert {outcome["outcome"] for outcome in importing.result()} == {"created"}
        for progress in wait_analysed(client).values():
            assert (progress["done"], progress["failed"]) == (before + PICTURES, 0), progress
        assert system.process(victim).pid != killed
        system.wait_all_ready()

        records = [record for record in listed(client) if (record["filename"] or "").startswith(victim)]
        assert sorted(record["filename"] for record in records) == sorted(name for name, _ in pictures)
        for record in records:
            assert {state["state"] for state in record["stages"].values()} == {"done"}
            assert record["caption"]
            assert record["palette"]
            assert client.get(record["links"]["cutout"]).status_code == 200
        # An object stands in its picture once, although its picture may have been looked at twice.
        for record in records:
            places = [(found["label"], *found["box"]) for found in record["objects"]]
            assert len(places) == len(set(places))
