"""A running system with test scenes in it, whose truth is known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from starter_models.scenes import Scene, draw_scene

from tests.system import stages, upload

FIRST_SCENE = 20_000
"""Test scenes from this index on: neither the samples nor what the weights were measured with while they were made."""
UPLOAD_BATCH = 50
PAGE = 200
Say = Callable[[str], None]


@dataclass
class Library:
    """Scenes by the id of their picture, and each picture's record as the API gives it."""

    client: httpx.Client
    scenes: dict[int, Scene]
    records: dict[int, dict[str, Any]] = field(default_factory=dict)

    def truth(self, image_id: int) -> Counter[str]:
        """Return how many of each label the picture shows."""
        return Counter(thing.label for thing in self.scenes[image_id].objects)

    def search(self, **asked: Any) -> list[dict[str, Any]]:
        """Return the hits of `POST /v1/search`."""
        answer = self.client.post("/v1/search", json=asked)
        assert answer.status_code == 200, f"{asked}: {answer.status_code} {answer.text}"
        hits: list[dict[str, Any]] = answer.json()["hits"]
        return hits


def draw(count: int, first: int = FIRST_SCENE) -> list[Scene]:
    """Return `count` test scenes."""
    return [draw_scene("test", place) for place in range(first, first + count)]


def import_scenes(client: httpx.Client, scenes: Sequence[Scene], say: Say) -> Library:
    """Upload `scenes` through the gateway, wait until every stage is done with them, and read the records."""
    ids: dict[int, Scene] = {}
    started = time.monotonic()
    for start in range(0, len(scenes), UPLOAD_BATCH):
        batch = scenes[start : start + UPLOAD_BATCH]
        outcomes = upload(client, [(f"{scene.index}.jpg", scene.jpeg()) for scene in batch])
        wrong = [outcome for outcome in outcomes if outcome["outcome"] != "created"]
        assert not wrong, wrong[0]
        ids.update((outcome["image"]["id"], scene) for outcome, scene in zip(outcomes, batch, strict=True))
        say(f"{len(ids)} of {len(scenes)} scenes stored, {time.monotonic() - started:.0f} s")
    wait_done(client, say)
    library = Library(client, ids)
    library.records = {record["id"]: record for record in listed(client) if record["id"] in ids}
    assert library.records.keys() == ids.keys(), "the listing lacks pictures that were stored"
    return library


def wait_done(client: httpx.Client, say: Say, timeout_s: float = 900) -> dict[str, dict[str, Any]]:
    """Wait until no stage has anything left to do, telling every few seconds how far each one is."""
    started = said = time.monotonic()
    while True:
        now = stages(client)
        if all(stage["pending"] + stage["running"] == 0 for stage in now.values()):
            return now
        moment = time.monotonic()
        if moment - started > timeout_s:
            raise TimeoutError(f"still at work after {timeout_s:g} s: {now}")
        if moment - said >= 5:
            said = moment
            say(f"{moment - started:4.0f} s: " + ", ".join(f"{name} {stage['done']}" for name, stage in now.items()))
        time.sleep(0.5)


def listed(client: httpx.Client, **asked: str) -> Iterator[dict[str, Any]]:
    """Yield every record that `GET /v1/images` lists, page by page."""
    cursor: str | None = None
    while True:
        params = {**asked, "limit": str(PAGE), **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/images", params=params).raise_for_status().json()
        yield from page["images"]
        if (cursor := page["next_cursor"]) is None:
            return
