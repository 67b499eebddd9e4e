"""Any process can die at any line: `kill -9` during an upload loses nothing and doubles nothing."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image
from starter_models.scenes import draw_scene

from tests.system import CORE, VECTORS_ONLY, System, running, wait_analysed

PICTURES = 300


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("crash") / "data", VECTORS_ONLY) as system:
        yield system


def scenes_from(start: int) -> dict[str, bytes]:
    files = {}
    for place in range(start, start + PICTURES):
        files[f"crash-{place:05}.jpg"] = draw_scene("validation", place, 256).jpeg()
    return files


def upload_until_answered(system: System, name: str, data: bytes, deadline: float) -> str:
    """Upload one picture, again and again until the answer is 2xx, as a careful client does; return the outcome."""
    with system.client() as client:
        while time.monotonic() < deadline:
            try:
                answer = client.post("/v1/images", files={"files": (name, data)})
            except httpx.TransportError:
                time.sleep(0.2)  # nobody listens until the gateway is back
                continue
            if answer.status_code in (200, 201):
                return str(answer.json()["outcomes"][0]["outcome"])
            assert answer.status_code == 503 or answer.json()["outcomes"][0]["problem"]["status"] == 503, answer.text
            time.sleep(0.2)
    raise AssertionError(f"{name} got no 2xx answer in time:\n{system.console()}")


@pytest.mark.parametrize(("number", "victim"), list(enumerate([*CORE, "postgres"])), ids=[*CORE, "postgres"])
def test_killing_any_process_during_an_upload_loses_and_doubles_nothing(
    system: System, number: int, victim: str
) -> None:
    files = scenes_from(number * PICTURES)
    with system.client() as client:
        before = client.get("/v1/stats").raise_for_status().json()["images"]
    deadline = time.monotonic() + 180
    answered = 0
    ready_to_kill = threading.Event()

    def send(item: tuple[str, bytes]) -> str:
        nonlocal answered
        outcome = upload_until_answered(system, *item, deadline)
        answered += 1
        if answered >= PICTURES // 3:
            ready_to_kill.set()
        return outcome

    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, item) for item in files.items()]
        assert ready_to_kill.wait(120)
        killed = system.kill(victim)
        outcomes = [job.result() for job in sending]
    assert set(outcomes) <= {"created", "duplicate"}
    system.wait_ready()
    assert system.process(victim).pid != killed, "it was not started again"

    with system.client() as client:
        progress = wait_analysed(client)
        assert client.get("/v1/stats").json()["images"] == before + PICTURES
        for name in ("clip", "resnet"):
            assert (progress[name]["done"], progress[name]["failed"]) == (before + PICTURES, 0)

        # Each is there once, whole, under its own hash, and nothing else is.
        listed: dict[str, str] = {}
        cursor: str | None = None
        while True:
            params = {"limit": "500", "filter": '{"field": "filename", "prefix": "crash-"}'}
            if cursor:
                params["cursor"] = cursor
            page = client.get("/v1/images", params=params).raise_for_status().json()
            for image in page["images"]:
                assert image["filename"] not in listed
                listed[image["filename"]] = image["sha256"]
                assert {stage["state"] for stage in image["stages"].values()} <= {"done", "off"}
            if (cursor := page["next_cursor"]) is None:
                break
        assert len(listed) == before + PICTURES
        for name, data in files.items():
            assert listed[name] == hashlib.sha256(data).hexdigest()

        # Found by search: the picture itself is its own nearest neighbour.
        for name, data in list(files.items())[:: PICTURES // 20]:
            answer = client.post("/v1/search/by-image", files={"image": (name, data)}, data={"limit": "1"})
            hit = answer.raise_for_status().json()["hits"][0]
            assert hit["image"]["filename"] == name
            preview = client.get(f"/v1/images/{hit['image']['id']}/preview").raise_for_status().content
            Image.open(io.BytesIO(preview)).load()


def test_what_was_killed_is_said_in_one_line_each(system: System) -> None:
    console = system.console().lower()
    for victim in (*CORE, "postgres"):
        assert victim in console, f"nothing was said about {victim}:\n{console}"
