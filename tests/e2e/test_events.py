"""The event stream tells the truth about what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starter_models.scenes import draw_scene

from tests.system import System, running, stages, upload


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("events") / "data") as system:
        yield system


def events(system: System) -> Iterator[dict[str, Any]]:
    """Yield the data of each `stage` event."""
    with system.client(30) as client, client.stream("GET", "/v1/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event:"):
                kind = line.removeprefix("event:").strip()
            elif line.startswith("data:") and kind == "stage":
                yield json.loads(line.removeprefix("data:"))


def test_the_stream_begins_with_the_present_state_and_ends_at_nothing_left(system: System) -> None:
    pictures = [(f"{place}.jpg", draw_scene("test", place).jpeg()) for place in range(60)]
    stream = events(system)
    first = next(stream)
    assert (first["pending"], first["running"], first["done"]) == (0, 0, 0)
    with system.client() as client:
        upload(client, pictures)
        seen: dict[str, list[dict[str, Any]]] = {"clip": [], "resnet": []}
        for event in stream:
            if event["stage"] in seen:
                seen[event["stage"]].append(event)
            if all(states and states[-1]["done"] == 60 for states in seen.values()):
                break
        now = stages(client)
    for name, states in seen.items():
        done = [state["done"] for state in states]
        assert done == sorted(done)
        assert (states[-1]["pending"], states[-1]["running"], states[-1]["failed"]) == (0, 0, 0)
        assert now[name]["done"] == 60


def test_a_paused_stage_stands_still_until_it_is_resumed(system: System) -> None:
    with system.client() as client:
        assert client.post("/v1/stages/resnet/pause").status_code == 200
        before = stages(client)["resnet"]["done"]
        upload(client, [(f"p{place}.jpg", draw_scene("test", 100 + place).jpeg()) for place in range(10)])
        for event in events(system):
            if event["stage"] == "clip" and event["pending"] + event["running"] == 0 and event["done"] >= before + 10:
                break
        held = stages(client)["resnet"]
        assert (held["paused"], held["done"], held["pending"]) == (True, before, 10)
        assert client.post("/v1/stages/resnet/resume").status_code == 200
        for event in events(system):
            if event["stage"] == "resnet" and event["done"] == before + 10:
                break
