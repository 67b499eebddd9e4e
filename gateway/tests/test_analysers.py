"""The stages that add to a picture: palette, objects, caption, cutout; each from lease to record."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from gateway.pipeline.precedence import Precedence
from gateway.testing.caption import caption_of
from gateway.testing.color import palette_of
from gateway.testing.inner import pipeline_over, until
from PIL import Image
from pixelgate_common.contracts.storage import STAGES

Scene = Callable[..., bytes]
BROKEN_PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40


@pytest.fixture
def full(inner: Any) -> Any:
    inner.storage.stage_names = STAGES
    return inner


async def test_every_stage_leaves_what_it_found_in_the_record(full: Any, scene: Scene) -> None:
    full.storage.size = (256, 192)  # the original; the previews here have a quarter of its sides
    data = scene("#ff0000", (8, 12, 16, 20))
    full.storage.add(data)
    async with pipeline_over(full):
        await until(full.all_settled)
    record = full.storage.records[1]
    assert {stage: state.state for stage, state in record.stages.items()} == dict.fromkeys(STAGES, "done")
    assert record.caption == caption_of(data)
    (found,) = record.objects
    assert (found.label, found.box) == ("thing", (32, 48, 64, 80))
    assert [color.model_dump() for color in record.palette] == [
        color.model_dump() for color in palette_of(data).palette
    ]
    cutout = Image.open(io.BytesIO(full.storage.made[1, "cutout"]))
    assert (cutout.mode, cutout.getchannel("A").getbbox()) == ("RGBA", (8, 12, 24, 32))
    assert [color.hex for color in record.foreground_palette] == ["#ff0000"]
    assert full.storage.models["objects"].fingerprint == "fake-objects/1"


async def test_each_batch_is_one_call_within_the_contracts_sizes(full: Any, scene: Scene) -> None:
    for number in range(40):
        full.storage.add(scene(f"#ff00{number:02x}"))
    async with pipeline_over(full, batch=64, stand_back_s=0, lease_s=600, slow_lease_s=600):
        await until(full.all_settled)
    for fake, most in ((full.color, 64), (full.detect, 32), (full.caption, 32)):
        assert max(count for _, count, _ in fake.calls) <= most
    assert max(count for slot, count, _ in full.detect.calls if slot == "cutout") <= 8
    assert {priority for fake in (full.color, full.detect, full.caption) for *_, priority in fake.calls} == {"bulk"}
    captioned = [count for _, count, _ in full.caption.calls]
    assert sum(captioned) == 40
    assert captioned[0] == 4  # small to begin with
    assert max(captioned) > 4  # and larger when the service turns out to be quick
    assert full.detect.last_query["fingerprint"].endswith("/1")


async def test_a_picture_that_cannot_be_decoded_fails_alone_in_every_stage(full: Any, scene: Scene) -> None:
    for data in (scene("#00ff00"), BROKEN_PNG, scene("#0000ff")):
        full.storage.add(data)
    async with pipeline_over(full):
        await until(full.all_settled)
    for stage in ("palette", "objects", "caption", "cutout"):
        assert full.storage.states(stage) == {1: "done", 2: "failed", 3: "done"}
        assert full.storage.work[stage, 2].attempts == 1
    assert set(full.storage.made) == {(1, "cutout"), (3, "cutout")}


async def unready(client: httpx.AsyncClient) -> set[str]:
    parts = (await client.get("/readyz")).json()["parts"]
    return {name for name, part in parts.items() if not part["ready"]}


@pytest.mark.parametrize(
    ("away", "waiting"),
    [
        pytest.param("to_caption", {"caption"}, id="caption"),
        pytest.param("to_detect", {"objects", "cutout"}, id="detect"),
        pytest.param("to_color", {"palette", "cutout"}, id="color"),
    ],
)
async def test_a_service_that_is_away_stops_its_own_stages_only(
    full: Any, scene: Scene, away: str, waiting: set[str]
) -> None:
    getattr(full, away).down = True
    full.storage.add(scene("#ff0000"))
    async with pipeline_over(full) as client:
        await until(lambda: all(full.settled(stage) for stage in set(STAGES) - waiting))
        async with asyncio.timeout(60):
            while await unready(client) != waiting:  # a stage says so when it next looks for work
                await asyncio.sleep(0.01)
        assert (await client.get("/readyz")).status_code == 200, "pictures can be found without it"
        assert {stage for stage in STAGES if not full.settled(stage)} == waiting
        getattr(full, away).down = False
        await until(full.all_settled)
    assert {work.attempts for work in full.storage.work.values()} == {1}


async def test_a_stage_that_is_off_asks_nobody_and_is_no_trouble(inner: Any, scene: Scene) -> None:
    inner.storage.stage_names = ("clip", "resnet", "palette")
    inner.to_caption.down = inner.to_detect.down = True
    inner.storage.add(scene("#ff0000"))
    async with pipeline_over(inner) as client:
        await until(inner.all_settled)
        async with asyncio.timeout(60):
            while (ready := (await client.get("/readyz")).json())["parts"]["cutout"] != {
                "ready": True,
                "detail": "off",
            }:
                await asyncio.sleep(0.01)
        assert ready["ready"] is True
    assert (inner.to_caption.requests, inner.to_detect.requests) == (0, 0)


async def test_a_stage_that_is_switched_on_later_is_worked_off(inner: Any, scene: Scene) -> None:
    inner.storage.add(scene("#ff0000"))
    async with pipeline_over(inner):
        await until(lambda: inner.settled())
        inner.storage.stage_names = ("clip", "resnet", "caption")
        inner.storage.add(scene("#00ff00"))
        await until(lambda: inner.storage.states("caption") == {2: "done"})


async def test_a_cutout_whose_lease_has_gone_to_another_is_not_handed_in(full: Any, scene: Scene) -> None:
    full.storage.stage_names = ("cutout",)
    full.storage.add(scene("#ff0000"))

    class Steals(httpx.AsyncBaseTransport):
        def __init__(self, line: httpx.AsyncBaseTransport) -> None:
            self.line, self.stolen = line, 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "/files/" in request.url.path and not self.stolen:
                self.stolen += 1
                full.storage.work["cutout", 1].token = "another's"
                full.storage.work["cutout", 1].expires_at = 0.0
            return await self.line.handle_async_request(request)

    full.to_storage = Steals(full.to_storage)
    async with pipeline_over(full):
        await until(full.all_settled)
    assert full.to_storage.stolen == 1
    assert full.storage.stale == 0, "the stale result was not even sent"
    assert full.storage.states("cutout") == {1: "done"}


async def test_a_file_that_storage_does_not_take_is_the_pictures_problem(full: Any, scene: Scene) -> None:
    full.storage.stage_names = ("cutout",)
    full.storage.add(scene("#ff0000"))

    class Refuses(httpx.AsyncBaseTransport):
        def __init__(self, line: httpx.AsyncBaseTransport) -> None:
            self.line = line

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "/files/" in request.url.path:
                problem = {"type": "urn:pixelgate:problem:body_too_large", "title": "", "status": 413, "detail": "Big."}
                return httpx.Response(413, content=json.dumps(problem))
            return await self.line.handle_async_request(request)

    full.to_storage = Refuses(full.to_storage)
    async with pipeline_over(full):
        await until(full.all_settled)
    assert full.storage.states("cutout") == {1: "failed"}
    assert full.storage.work["cutout", 1].result.problem.code == "body_too_large"


class TestPrecedence:
    async def test_a_slow_stage_waits_while_a_quicker_one_has_much_to_do_and_not_for_ever(self) -> None:
        patient = Precedence(30.0)
        patient.note("clip", 0, True)
        waits = asyncio.create_task(patient.wait(2, lambda: False))
        await asyncio.sleep(0.05)
        assert not waits.done()
        patient.note("clip", 0, False)
        await asyncio.wait_for(waits, 10)
        hasty = Precedence(0.01)
        hasty.note("clip", 0, True)
        await asyncio.wait_for(hasty.wait(2, lambda: False), 10)

    async def test_nobody_waits_for_an_equal_or_a_slower_one_or_when_all_stops(self) -> None:
        order = Precedence(3600.0)
        order.note("caption", 2, True)
        async with asyncio.timeout(10):
            await order.wait(2, lambda: False)
            await order.wait(0, lambda: False)
            await order.wait(3, lambda: True)
