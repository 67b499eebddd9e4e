"""Progress, steering, statistics and the event stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway.answers import StageEvents
from gateway.feed import StageFeed
from pixelgate_common.contracts.storage import STAGES, StageModel
from pixelgate_common.errors import Overloaded, Unavailable


async def test_stages_and_stats_are_passed_on(gateway: Any) -> None:
    gateway.storage.add(b"\xff\xd8\xff1")
    (clip, resnet) = (await gateway.client.get("/v1/stages")).json()["stages"]
    assert (clip["stage"], resnet["stage"], clip["pending"]) == ("clip", "resnet", 1)
    assert {"fingerprint", "paused", "running", "done", "failed", "rate_per_s", "seconds_left"} <= set(clip)
    stats = (await gateway.client.get("/v1/stats")).json()
    assert (stats["images"], stats["bytes"]) == (1, 4)
    assert set(stats["processing_ms"]) == {"mean", "p50", "p95"}


async def test_models_name_the_set_and_every_slot_of_every_service(gateway: Any) -> None:
    gateway.storage.models["clip"] = StageModel(fingerprint="fake-clip/1", model="fake clip", dim=32)
    answer = (await gateway.client.get("/v1/models")).json()
    assert answer["set"] == "fake"
    slots = {slot["slot"]: slot for slot in answer["slots"]}
    assert list(slots) == ["clip", "resnet", "caption", "objects", "cutout", "palette"]
    assert {(slot["fingerprint"], slot["state"]) for slot in slots.values()} == {
        (f"fake-{name}/1", "ready") for name in slots
    }
    assert slots["clip"]["generations"] == [{"fingerprint": "fake-clip/1", "state": "active", "images": 0}]
    assert slots["clip"]["dim"] == 32
    assert [slots[name]["generations"] for name in ("resnet", "caption")] == [[], []]
    assert (slots["caption"]["model"], slots["caption"]["service"]) == ("fake caption", "caption-service")


@pytest.mark.parametrize(
    ("away", "slots"),
    [
        ("to_embed", {"clip", "resnet"}),
        ("to_caption", {"caption"}),
        ("to_detect", {"objects", "cutout"}),
        ("to_color", {"palette"}),
    ],
)
async def test_a_service_that_is_away_is_told_as_unreachable(gateway: Any, away: str, slots: set[str]) -> None:
    getattr(gateway.inner, away).down = True
    answer = await gateway.client.get("/v1/models")
    assert answer.status_code == 200
    unreachable = [slot for slot in answer.json()["slots"] if slot["state"] == "unreachable"]
    assert {slot["slot"] for slot in unreachable} == slots
    assert all(slot["model"] is None and slot["fingerprint"] is None for slot in unreachable)
    assert (len(answer.json()["slots"]), answer.json()["set"]) == (6, "fake")


async def test_idle_models_and_further_ones_are_told_and_mixed_sets_have_no_name(gateway: Any) -> None:
    gateway.inner.caption.state = "idle"
    gateway.inner.caption.set = "standard"
    gateway.inner.detect.further = {"cutout": ["u2net_human_seg"]}
    answer = (await gateway.client.get("/v1/models")).json()
    slots = {slot["slot"]: slot for slot in answer["slots"]}
    assert answer["set"] is None
    assert (slots["caption"]["state"], slots["caption"]["set"], slots["objects"]["set"]) == ("idle", "standard", "fake")
    assert (slots["cutout"]["model"], slots["cutout"]["others"]) == ("fake cutout", ["u2net_human_seg"])


@pytest.mark.parametrize("stage", STAGES)
async def test_every_stage_can_be_steered(gateway: Any, stage: str) -> None:
    gateway.storage.stage_names = STAGES
    gateway.storage.add(b"\xff\xd8\xff1")
    gateway.storage.work[stage, 1].state = "failed"
    for action, expected in (("pause", (True, 0)), ("resume", (False, 0)), ("retry-failed", (False, 1))):
        answer = await gateway.client.post(f"/v1/stages/{stage}/{action}")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["paused"], answer.json()["pending"]) == expected
    gateway.storage.work[stage, 1].state = "done"
    assert (await gateway.client.post(f"/v1/stages/{stage}/rerun")).json()["pending"] == 1


async def test_cutouts_are_asked_for_picture_by_picture(gateway: Any) -> None:
    gateway.storage.add(b"\xff\xd8\xff1")
    gateway.storage.add(b"\xff\xd8\xff2")
    gateway.storage.stage_names = STAGES
    answer = await gateway.client.post("/v1/stages/cutout/request", json={"image_ids": [2]})
    assert (answer.status_code, answer.json()["stage"], answer.json()["pending"]) == (200, "cutout", 1)
    assert gateway.storage.states("cutout") == {2: "pending"}
    unknown = await gateway.client.post("/v1/stages/cutout/request", json={"image_ids": [77]})
    assert unknown.status_code == 404
    nothing = await gateway.client.post("/v1/stages/cutout/request", json={"image_ids": []})
    assert (nothing.status_code, nothing.json()["errors"][0]["field"]) == (422, "image_ids")


async def test_a_stage_is_paused_resumed_and_done_again(gateway: Any) -> None:
    gateway.storage.add(b"\xff\xd8\xff1")
    paused = await gateway.client.post("/v1/stages/clip/pause")
    assert (paused.status_code, paused.json()["stage"], paused.json()["paused"]) == (200, "clip", True)
    assert (await gateway.client.post("/v1/stages/clip/resume")).json()["paused"] is False
    gateway.storage.work["clip", 1].state = "failed"
    assert (await gateway.client.post("/v1/stages/clip/retry-failed")).json()["pending"] == 1
    gateway.storage.work["clip", 1].state = "done"
    assert (await gateway.client.post("/v1/stages/clip/rerun")).json()["pending"] == 1


@pytest.mark.parametrize(("path", "status"), [("caption/pause", 404), ("smell/pause", 422), ("clip/explode", 422)])
async def test_what_is_no_stage_or_action_is_refused(gateway: Any, path: str, status: int) -> None:
    assert (await gateway.client.post(f"/v1/stages/{path}")).status_code == status


class Reader:
    """A reader of the event stream, as the server would serve it, that can stop taking what it is sent."""

    def __init__(self, feed: StageFeed, **times: Any) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = asyncio.Event()
        answer = StageEvents(feed, **{"heartbeat_s": 5, "write_timeout_s": 5, **times})
        self.task = asyncio.create_task(answer({"type": "http"}, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.takes.wait()
        self.messages.put_nowait(message)

    async def parts(self) -> AsyncIterator[str]:
        """Yield the stream's pieces, each up to a blank line."""
        while True:
            message = await asyncio.wait_for(self.messages.get(), 10)
            if message["type"] == "http.response.start":
                assert message["status"] == 200
                assert (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
                continue
            for part in message["body"].decode().split("\n\n"):
                if part:
                    yield part
            if not message["more_body"]:
                return

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        async for part in self.parts():
            lines = dict(line.split(": ", 1) for line in part.split("\n") if not line.startswith(":"))
            if lines.get("event") == "stage":
                assert lines["id"].isdecimal()
                yield json.loads(lines["data"])


@pytest.fixture
async def feed(gateway: Any) -> AsyncIterator[StageFeed]:
    storage = gateway.app.state.parts.storage
    feed = StageFeed(storage, poll_s=0.01, subscribers=2)
    yield feed
    await feed.close()


async def test_the_present_state_comes_first_and_then_each_change(gateway: Any, feed: StageFeed) -> None:
    reader = Reader(feed)
    events = reader.events()
    first, second = await anext(events), await anext(events)
    assert [first, second] == (await gateway.client.get("/v1/stages")).json()["stages"]
    gateway.storage.add(b"\xff\xd8\xff1")
    changed = [await anext(events), await anext(events)]
    assert [(event["stage"], event["pending"]) for event in changed] == [("clip", 1), ("resnet", 1)]
    gateway.storage.work["clip", 1].state = "done"
    event = await anext(events)
    assert (event["stage"], event["pending"], event["done"]) == ("clip", 0, 1)
    reader.gone.set()
    await reader.task


async def test_one_poller_asks_for_all_readers_and_nobody_for_none(gateway: Any, feed: StageFeed) -> None:
    readers = [Reader(feed), Reader(feed)]
    for reader in readers:
        await anext(reader.events())
    poller = feed._poller
    assert poller is not None
    for reader in readers:
        reader.gone.set()
        await reader.task
    await asyncio.wait_for(poller, 5)
    asked = gateway.inner.to_storage.requests
    await asyncio.sleep(0.1)
    assert gateway.inner.to_storage.requests == asked


async def test_one_reader_too_many_is_refused(feed: StageFeed) -> None:
    async with feed.subscribe(), feed.subscribe():
        with pytest.raises(Overloaded):
            async with feed.subscribe():
                pytest.fail("a third reader")
    async with feed.subscribe():
        pass


async def test_a_slow_reader_gets_the_last_state_and_nothing_piles_up(gateway: Any, feed: StageFeed) -> None:
    async with feed.subscribe() as subscription:
        gateway.storage.stage_names = ("clip",)
        await subscription.take(1)
        for number in range(20):
            gateway.storage.add(b"\xff\xd8\xff" + bytes([number]))
            feed._publish([gateway.storage.progress("clip")])
        ((_, last),) = await subscription.take(1)
        assert last.pending == 20


async def test_a_reader_that_takes_nothing_is_dropped(gateway: Any, feed: StageFeed) -> None:
    reader = Reader(feed, write_timeout_s=0.05)
    await anext(reader.events())
    reader.takes.clear()
    gateway.storage.add(b"\xff\xd8\xff1")
    await asyncio.wait_for(reader.task, 10)
    assert not feed._subscriptions


async def test_a_quiet_stream_says_that_it_is_alive(feed: StageFeed) -> None:
    reader = Reader(feed, heartbeat_s=0.05)
    async for part in reader.parts():
        if part.startswith(":"):
            break
    reader.gone.set()
    await reader.task


async def test_an_outage_does_not_end_the_stream(gateway: Any, feed: StageFeed) -> None:
    reader = Reader(feed)
    events = reader.events()
    await anext(events)
    await anext(events)
    gateway.inner.to_storage.down = True
    asked = gateway.inner.to_storage.requests
    while gateway.inner.to_storage.requests < asked + 3:
        await asyncio.sleep(0.01)
    gateway.storage.add(b"\xff\xd8\xff1")
    gateway.inner.to_storage.down = False
    assert (await anext(events))["pending"] == 1
    reader.gone.set()
    await reader.task


async def test_without_storage_the_stream_does_not_begin(gateway: Any, feed: StageFeed) -> None:
    gateway.inner.to_storage.down = True
    with pytest.raises(Unavailable):
        async with feed.subscribe():
            pytest.fail("nothing can be told")


async def test_when_the_gateway_stops_every_stream_ends(feed: StageFeed) -> None:
    reader = Reader(feed)
    await anext(reader.events())
    feed.end_all()
    await asyncio.wait_for(reader.task, 5)
