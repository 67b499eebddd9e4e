"""The pipeline: everything is analysed once, whatever fails, and one bad picture fails alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from gateway.pipeline.breaker import Breaker
from gateway.pipeline.pace import Pace, Suspects
from gateway.pipeline.settings import PipelineSettings
from gateway.pipeline.stages import stages
from gateway.pipeline.worker import StageWorker
from gateway.testing.embed import BROKEN, POISON, vector_of
from gateway.testing.inner import pipeline_over, until
from numpy.testing import assert_allclose
from pixelgate_common.contracts.storage import Leased
from pixelgate_common.vectors import decode_vector


def pictures(count: int) -> list[bytes]:
    return [b"\xff\xd8\xff" + str(number).encode() for number in range(count)]


async def test_every_picture_gets_its_own_vector_in_every_stage(inner: Any) -> None:
    for data in pictures(100):
        inner.storage.add(data)
    async with pipeline_over(inner, batch=16):
        await until(lambda: inner.settled("clip") and inner.settled("resnet"))
    for stage in ("clip", "resnet"):
        assert set(inner.storage.states(stage).values()) == {"done"}
        for image_id, data in inner.storage.files.items():
            text = inner.storage.vector(stage, image_id)
            assert text is not None
            assert_allclose(decode_vector(text), vector_of(data, stage), atol=1e-6)
    assert {priority for _, _, priority in inner.embed.calls} == {"bulk"}
    assert max(count for _, count, _ in inner.embed.calls) == 16
    assert {work.attempts for work in inner.storage.work.values()} == {1}
    assert inner.storage.stale == 0
    assert inner.storage.models["clip"].fingerprint == "fake-clip/1"


async def test_what_arrives_later_is_done_too(inner: Any) -> None:
    async with pipeline_over(inner):
        inner.storage.add(b"\xff\xd8\xfffirst")
        await until(lambda: inner.settled())
        inner.storage.add(b"\xff\xd8\xffsecond")
        await until(lambda: inner.settled())
    assert inner.storage.states("clip") == {1: "done", 2: "done"}


async def test_a_picture_with_a_problem_fails_alone_and_is_not_tried_again(inner: Any) -> None:
    for data in [*pictures(10), BROKEN, *pictures(20)[10:]]:
        inner.storage.add(data)
    async with pipeline_over(inner):
        await until(lambda: inner.settled())
    states = inner.storage.states("clip")
    assert states.pop(11) == "failed"
    assert set(states.values()) == {"done"}
    work = inner.storage.work["clip", 11]
    assert work.attempts == 1
    assert work.result is not None
    assert work.result.problem is not None
    assert work.result.problem.code == "broken_image"
    assert work.result.retry is False


async def test_a_picture_that_makes_the_whole_call_fail_is_found_and_fails_alone(inner: Any) -> None:
    for data in [*pictures(20), POISON, *pictures(40)[20:]]:
        inner.storage.add(data)
    async with pipeline_over(inner, workers=1):
        await until(lambda: inner.settled())
    states = inner.storage.states("clip")
    assert states.pop(21) == "failed"
    assert set(states.values()) == {"done"}
    assert {work.attempts for (stage, place), work in inner.storage.work.items() if place != 21} == {1}


class CutsOn(httpx.AsyncBaseTransport):
    """A way to embed-service that breaks, as if the service had died, whenever a call holds some bytes."""

    def __init__(self, inner: httpx.AsyncBaseTransport, what: bytes) -> None:
        self.inner, self.what, self.cuts = inner, what, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        if self.what in body:
            self.cuts += 1
            raise httpx.RemoteProtocolError("server disconnected")
        return await self.inner.handle_async_request(
            httpx.Request(request.method, request.url, headers=request.headers, content=body)
        )


async def test_a_picture_that_kills_the_service_is_found_and_fails_alone(inner: Any) -> None:
    for data in [*pictures(12), b"\xff\xd8\xffdeadly", *pictures(30)[12:]]:
        inner.storage.add(data)
    line = CutsOn(inner.to_embed, b"deadly")
    inner.to_embed = line
    async with pipeline_over(inner, workers=1):
        await until(lambda: inner.settled())
    states = inner.storage.states("clip")
    assert states.pop(13) == "failed"
    assert set(states.values()) == {"done"}
    # Of 31: 31, 16 (or 15), 8, 4, 2, 1, and then the two further attempts that a single picture has; per stage.
    assert line.cuts <= 2 * (6 + 2)
    assert {work.attempts for (stage, place), work in inner.storage.work.items() if place != 13} == {1}


async def test_a_service_that_is_away_costs_no_attempt_and_few_lines(
    inner: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in pictures(20):
        inner.storage.add(data)
    async with pipeline_over(inner) as client:
        await until(lambda: inner.settled())
        inner.to_embed.down = True
        for data in pictures(40)[20:]:
            inner.storage.add(data)
        requests = inner.to_embed.requests
        await until(lambda: inner.to_embed.requests > requests + 20)
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["parts"]["clip"] == {"ready": False, "detail": "embed-service cannot be reached."}
        assert (await client.get("/healthz")).status_code == 200
        inner.to_embed.down = False
        await until(lambda: inner.settled() and inner.settled("resnet"))
        async with asyncio.timeout(20):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
    assert {work.attempts for work in inner.storage.work.values()} == {1}
    printed = capsys.readouterr().out
    assert printed.count("stage_waits") == 2  # one for each stage
    assert printed.count("stage_goes_on") == 2


async def test_a_full_service_costs_no_attempt(inner: Any) -> None:
    inner.embed.busy = True
    for data in pictures(5):
        inner.storage.add(data)
    async with pipeline_over(inner):
        await until(lambda: inner.storage.released.count("clip") >= 10)
        inner.embed.busy = False
        await until(lambda: inner.settled())
    assert {work.attempts for work in inner.storage.work.values()} == {1}


async def test_another_model_is_noticed_and_its_results_wanted(inner: Any) -> None:
    async with pipeline_over(inner):
        inner.storage.add(pictures(1)[0])
        await until(lambda: inner.settled())
        inner.embed.version = "2"
        inner.storage.add(pictures(2)[1])
        await until(lambda: inner.settled())
    assert inner.storage.models["clip"].fingerprint == "fake-clip/2"


async def test_storage_away_for_a_moment_loses_no_result(inner: Any) -> None:
    for data in pictures(64):
        inner.storage.add(data)
    async with pipeline_over(inner, batch=8):
        await until(lambda: "done" in inner.storage.states("clip").values())
        inner.to_storage.faults = [(httpx.ConnectError("refused"), False)] * 6
        await until(lambda: inner.settled() and inner.settled("resnet"))
    assert {work.state for work in inner.storage.work.values()} == {"done"}


async def test_results_whose_answer_got_lost_are_stale_the_second_time_and_no_harm_is_done(inner: Any) -> None:
    inner.storage.add(pictures(1)[0])
    inner.storage.stage_names = ("clip",)

    class LosesAnswer(httpx.AsyncBaseTransport):
        def __init__(self, line: httpx.AsyncBaseTransport) -> None:
            self.line, self.lost = line, False

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await self.line.handle_async_request(request)
            if request.url.path.endswith("/results") and not self.lost:
                self.lost = True
                raise httpx.ReadError("cut")
            return answer

    inner.to_storage = LosesAnswer(inner.to_storage)
    async with pipeline_over(inner):
        await until(lambda: inner.storage.stale == 1)
    assert inner.storage.states("clip") == {1: "done"}


async def test_a_paused_stage_stands_still(inner: Any) -> None:
    inner.storage.paused.add("clip")
    inner.storage.add(pictures(1)[0])
    async with pipeline_over(inner):
        await until(lambda: inner.settled("resnet"))
        assert inner.storage.states("clip") == {1: "pending"}
        inner.storage.paused.clear()
        await until(lambda: inner.settled())


async def test_two_pipelines_do_nothing_twice(inner: Any) -> None:
    for data in pictures(200):
        inner.storage.add(data)
    async with pipeline_over(inner, batch=8), pipeline_over(inner, batch=8):
        await until(lambda: inner.settled() and inner.settled("resnet"))
    assert {(work.state, work.attempts) for work in inner.storage.work.values()} == {("done", 1)}
    assert sum(count for _, count, _ in inner.embed.calls) == 400


class Waits(httpx.AsyncBaseTransport):
    """A way to embed-service on which embedding never ends."""

    def __init__(self, line: httpx.AsyncBaseTransport) -> None:
        self.line, self.waiting = line, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "embed" in request.url.path:
            self.waiting += 1
            await asyncio.Event().wait()
        return await self.line.handle_async_request(request)


async def test_a_stop_gives_back_what_cannot_be_finished(inner: Any) -> None:
    inner.storage.add(pictures(1)[0])
    line = Waits(inner.to_embed)
    inner.to_embed = line
    async with pipeline_over(inner, stop_grace_s=0.05):
        await until(lambda: line.waiting == 2)
    assert {(work.state, work.attempts) for work in inner.storage.work.values()} == {("pending", 0)}


async def test_work_of_a_killed_pipeline_is_taken_up_when_its_lease_expires(inner: Any) -> None:
    for data in pictures(3):
        inner.storage.add(data)
    for work in inner.storage.work.values():
        work.state, work.token, work.attempts, work.expires_at = "running", "dead", 1, 0.0
    async with pipeline_over(inner):
        await until(lambda: inner.settled() and inner.settled("resnet"))
    assert {(work.state, work.attempts) for work in inner.storage.work.values()} == {("done", 2)}


async def test_a_file_that_is_missing_fails_alone(inner: Any) -> None:
    for data in pictures(3):
        inner.storage.add(data)
    del inner.storage.files[2]
    async with pipeline_over(inner):
        await until(lambda: inner.settled())
    assert inner.storage.states("clip") == {1: "done", 2: "failed", 3: "done"}


class TestSuspects:
    def items(self, *places: int) -> list[Leased]:
        return [Leased(image_id=place, token=str(place), attempt=1) for place in places]

    def ids(self, groups: list[list[Leased]]) -> list[list[int]]:
        return [[item.image_id for item in group] for group in groups]

    def test_without_suspicion_all_go_together(self) -> None:
        assert self.ids(Suspects().groups(self.items(1, 2, 3))) == [[1, 2, 3]]

    def test_suspects_go_in_smaller_groups_after_the_others(self) -> None:
        suspects = Suspects()
        suspects.blame(self.items(1, 2, 3, 4))
        suspects.blame(self.items(1, 2))
        assert self.ids(suspects.groups(self.items(1, 2, 3, 4, 5, 6, 7))) == [[5, 6, 7], [3, 4], [1], [2]]

    def test_what_is_done_is_above_suspicion(self) -> None:
        suspects = Suspects()
        suspects.blame(self.items(1, 2))
        suspects.clear(self.items(1, 2))
        assert self.ids(suspects.groups(self.items(1, 2))) == [[1, 2]]


def test_a_slow_model_gets_smaller_batches_and_a_quick_one_larger_again() -> None:
    pace = Pace(32, lease_s=30)
    pace.took(32, 11)
    assert pace.batch == 16
    pace.took(16, 5)
    assert pace.batch == 16
    pace.took(16, 1)
    assert pace.batch == 32
    pace.took(3, 40)
    assert pace.batch == 1
    pace.took(1, 1)
    assert pace.batch == 2


def test_pauses_grow_to_a_limit_and_begin_anew() -> None:
    breaker = Breaker("clip", min_s=1, max_s=8)
    pauses = [breaker.failed("away") for _ in range(20)]
    for pause, ceiling in zip(pauses, [1, 2, 4, *[8] * 17], strict=True):
        assert ceiling / 2 <= pause <= ceiling
    before = breaker.begin()
    breaker.failed("away")
    breaker.worked(before)
    assert breaker.reason == "away", "what began before the last failure says nothing"
    breaker.worked(breaker.begin())
    assert breaker.reason is None
    assert breaker.failed("away") <= 1


def test_a_call_ends_before_its_lease() -> None:
    settings = PipelineSettings()
    services: Any = SimpleNamespace(embed=None, caption=None, detect=None, color=None)
    nobody: Any = None
    calls = {
        stage.name: StageWorker(stage, nobody, settings, precedence=nobody, stages_on=nobody).call_timeout_s
        for stage in stages(services)
    }
    assert calls == {"clip": 24, "resnet": 24, "palette": 24, "objects": 48, "caption": 48, "cutout": 48}
    assert (settings.lease_s, settings.slow_lease_s) == (30, 60)
