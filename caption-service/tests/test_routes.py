"""Requests and answers, with a model that says what it is told; the real one is in test_loading."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from blip_folders import png
from caption_service.app import create_app
from caption_service.loading import Job, Loaded, Model
from caption_service.pixels import Preprocess
from caption_service.settings import Settings
from PIL import Image
from pixelgate_common.contracts.caption import MAX_IMAGES, MAX_WORDS, Captioned
from pixelgate_common.contracts.models import ServedModels
from pixelgate_common.images import DecodeLimits
from pixelgate_common.inference.errors import NotEnoughMemory
from pixelgate_common.inference.resident import Resident

OPENAPI = Path(__file__).parents[1] / "openapi.json"
RED, GREEN, BLACK = (png(Image.new("RGB", (20, 10), color)) for color in ("red", "lime", "black"))
SQUARE = Preprocess(size_px=8, resample=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NAMES = {(255, 0, 0): "red", (0, 255, 0): "green"}


class Painter:
    """Names a picture's colour and the words it was allowed; says nothing of a black one. Waits while it is held."""

    precision = "fp32"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def caption(self, jobs: Sequence[Job]) -> list[str]:
        assert self.free.wait(60)
        if self.error is not None:
            raise self.error
        colors = [NAMES.get(cast(Any, tuple(job.pixels[4, 4].tolist())), "") for job in jobs]
        self.batches.append(colors)
        return [color and f"{color} {job.min_words}-{job.max_words}" for color, job in zip(colors, jobs, strict=True)]


class Shelf:
    """Loads a painter, or fails."""

    def __init__(self) -> None:
        self.painter, self.loads = Painter(), 0
        self.error: Exception | None = None

    def load(self) -> Loaded:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return cast(Loaded, self.painter)


def model(shelf: Shelf, name: str = "painter", *, idle_s: float = 0.0) -> Model:
    return Model(
        name=name,
        fingerprint=f"blip-{name}",
        backend="openvino",
        device="cpu",
        good_batch=4,
        precision="fp32",
        preprocess=SQUARE,
        limits=DecodeLimits(max_pixels=10_000),
        resident=Resident(name, shelf.load, idle_s=idle_s),
    )


@asynccontextmanager
async def client(settings: Settings, *models: Model) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, models=models)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as http,
    ):
        yield http


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def files(*pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("a.png", picture)) for picture in pictures]


async def waiting(http: httpx.AsyncClient, lane: str, count: int) -> None:
    """Return when at least `count` pictures wait in a lane of the first model's queue."""
    transport = http._transport
    assert isinstance(transport, httpx.ASGITransport)
    app: Any = transport.app
    async with asyncio.timeout(60):
        while len(getattr(app.state.captioner._served[0].queue._waiting, lane)) < count:
            await asyncio.sleep(0.01)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"].endswith(f":{code}")
    return body


async def test_pictures_get_captions_in_order_and_a_bad_one_its_own_problem(settings: Settings, shelf: Shelf) -> None:
    async with client(settings, model(shelf)) as http:
        response = await http.post(
            "/v1/captions",
            files=files(RED, b"text", GREEN, BLACK),
            params={"min_words": 2, "max_words": 9, "priority": "bulk", "fingerprint": "blip-painter"},
        )
    answer = Captioned.model_validate(response.json())
    assert (answer.model, answer.fingerprint) == ("painter", "blip-painter")
    assert [item.caption for item in answer.items] == ["red 2-9", None, "green 2-9", None]
    problems = [item.problem for item in answer.items]
    assert [p and (p.status, p.type.rsplit(":", 1)[1]) for p in problems] == [
        None,
        (422, "not_an_image"),
        None,
        (422, "no_caption"),
    ]


async def test_one_picture_may_be_the_whole_body(settings: Settings, shelf: Shelf) -> None:
    async with client(settings, model(shelf)) as http:
        response = await http.post("/v1/captions", content=RED, headers={"content-type": "image/png"})
    assert response.json()["items"] == [{"caption": "red 0-30", "problem": None}]


async def test_requests_with_limits_of_their_own_share_a_batch(settings: Settings, shelf: Shelf) -> None:
    shelf.painter.free.clear()
    async with client(settings, model(shelf)) as http:

        async def ask(words: int) -> str:
            response = await http.post("/v1/captions", files=files(RED), params={"max_words": words})
            return str(response.json()["items"][0]["caption"])

        asked = [asyncio.create_task(ask(words)) for words in (1, 2, 3, 4, 5)]
        await waiting(http, "interactive", 2)
        shelf.painter.free.set()
        assert await asyncio.gather(*asked) == [f"red 0-{words}" for words in (1, 2, 3, 4, 5)]
    assert 2 <= max(map(len, shelf.painter.batches)) <= 4


async def test_interactive_goes_before_bulk(settings: Settings, shelf: Shelf) -> None:
    shelf.painter.free.clear()
    async with client(settings, model(shelf)) as http:
        bulk = asyncio.create_task(http.post("/v1/captions", files=files(*[RED] * 8), params={"priority": "bulk"}))
        await waiting(http, "bulk", 6)
        interactive = asyncio.create_task(http.post("/v1/captions", files=files(GREEN)))
        await waiting(http, "interactive", 1)
        shelf.painter.free.set()
        assert {answer.status_code for answer in await asyncio.gather(bulk, interactive)} == {200}
    order = [color for batch in shelf.painter.batches for color in batch]
    assert order.index("green") <= 2, "right after the bulk batch that was running"


@pytest.mark.parametrize(
    ("params", "status", "code", "field"),
    [
        ({"min_words": 9, "max_words": 3}, 422, "invalid_request", None),
        ({"max_words": MAX_WORDS + 1}, 422, "invalid_request", "max_words"),
        ({"max_words": 0}, 422, "invalid_request", "max_words"),
        ({"min_words": -1}, 422, "invalid_request", "min_words"),
        ({"priority": "now"}, 422, "invalid_request", "priority"),
        ({"beams": 3}, 422, "invalid_request", "beams"),
        ({"fingerprint": "not a name"}, 422, "invalid_request", "fingerprint"),
        ({"fingerprint": "blip-other"}, 409, "fingerprint_mismatch", "fingerprint"),
    ],
    ids=str,
)
async def test_what_cannot_be_asked_names_its_field(
    settings: Settings, shelf: Shelf, params: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    async with client(settings, model(shelf)) as http:
        answer = problem(await http.post("/v1/captions", files=files(RED), params=params), status, code)
    if field is not None:
        assert answer["errors"][0]["field"] == field


async def test_too_many_pictures_or_none_are_refused(settings: Settings, shelf: Shelf) -> None:
    async with client(settings, model(shelf)) as http:
        ok = await http.post("/v1/captions", files=files(*[RED] * MAX_IMAGES))
        assert len(ok.json()["items"]) == MAX_IMAGES
        problem(await http.post("/v1/captions", files=files(*[RED] * (MAX_IMAGES + 1))), 422, "invalid_request")
        problem(await http.post("/v1/captions", json={"images": []}), 422, "invalid_request")
        problem(await http.post("/v1/captions"), 422, "invalid_request")
        problem(await http.post("/v1/captions", files={"pictures": RED}), 422, "invalid_request")


async def test_a_body_over_the_limit_is_refused(settings: Settings, shelf: Shelf) -> None:
    async with client(settings.model_copy(update={"max_request_mb": 1}), model(shelf)) as http:
        big = b"x" * (1024 * 1024 + 1)
        problem(
            await http.post("/v1/captions", content=big, headers={"content-type": "image/png"}), 413, "body_too_large"
        )


async def test_more_bytes_than_may_be_held_are_refused_for_a_while(settings: Settings, shelf: Shelf) -> None:
    settings = settings.model_copy(update={"max_request_mb": 2, "max_in_flight_mb": 2})
    async with client(settings, model(shelf)) as http:

        async def slow() -> AsyncIterator[bytes]:
            # Of unknown length, so all that is allowed is held for it; the other request comes while it is being read.
            yield RED
            refused = await http.post("/v1/captions", files=files(RED))
            problem(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1

        assert (
            await http.post("/v1/captions", content=slow(), headers={"content-type": "image/png"})
        ).status_code == 200
        assert (await http.post("/v1/captions", files=files(RED))).status_code == 200, "the bytes are free again"


async def test_200_requests_at_once_are_answered_or_refused_and_then_all_is_as_before(
    settings: Settings, shelf: Shelf
) -> None:
    shelf.painter.free.clear()
    async with client(settings.model_copy(update={"max_places": 32}), model(shelf)) as http:
        asked = [asyncio.create_task(http.post("/v1/captions", files=files(RED))) for _ in range(200)]
        while sum(task.done() for task in asked) < 200 - 32:
            await asyncio.sleep(0.01)
        shelf.painter.free.set()
        answers = await asyncio.gather(*asked)
        assert sorted({answer.status_code for answer in answers}) == [200, 503]
        assert sum(answer.status_code == 200 for answer in answers) == 32
        for refused in (answer for answer in answers if answer.status_code == 503):
            assert int(refused.headers["retry-after"]) >= 1
        again = await asyncio.gather(*(http.post("/v1/captions", files=files(RED)) for _ in range(32)))
        assert {answer.status_code for answer in again} == {200}
        metrics = (await http.get("/metrics")).text
        assert 'pixelgate_caption_queue_places{model="painter"} 0.0' in metrics
        assert "pixelgate_request_held_bytes 0.0" in metrics


async def test_models_are_listed_and_one_that_is_idle_is_loaded_when_it_is_asked(settings: Settings) -> None:
    first, second = Shelf(), Shelf()
    async with client(settings, model(first, "first", idle_s=0.05), model(second, "second")) as http:
        served = ServedModels.model_validate((await http.get("/v1/models")).json())
        assert [(m.slot, m.model, m.state) for m in served.models] == [
            ("caption", "first", "idle"),
            ("caption", "second", "idle"),
        ]
        answers = await asyncio.gather(*(http.post("/v1/captions", files=files(RED)) for _ in range(5)))
        assert [answer.json()["fingerprint"] for answer in answers] == ["blip-first"] * 5
        assert first.loads == 1
        async with asyncio.timeout(20):
            while (await http.get("/v1/models")).json()["models"][0]["state"] == "loaded":
                await asyncio.sleep(0.02)
        answer = await http.post("/v1/captions", files=files(RED), params={"fingerprint": "blip-second"})
        assert answer.json()["model"] == "second"
        assert (await http.post("/v1/captions", files=files(RED))).status_code == 200
        assert (first.loads, second.loads) == (2, 1)


async def test_a_model_that_cannot_be_loaded_again_is_a_503_for_its_callers(settings: Settings, shelf: Shelf) -> None:
    shelf.error = NotEnoughMemory("painter needs about 2 MB of memory; this machine has 1 MB left.")
    async with client(settings, model(shelf)) as http:
        refused = await http.post("/v1/captions", files=files(RED))
        problem(refused, 503, "not_enough_memory")
        assert int(refused.headers["retry-after"]) >= 1
        shelf.error = None
        assert (await http.post("/v1/captions", files=files(RED))).status_code == 200


async def test_a_failing_model_is_a_500_without_detail_and_the_next_is_answered(
    settings: Settings, shelf: Shelf
) -> None:
    shelf.painter.error = ValueError("secret path")
    async with client(settings, model(shelf)) as http:
        answer = problem(await http.post("/v1/captions", files=files(RED)), 500, "internal")
        assert "secret" not in json.dumps(answer)
        shelf.painter.error = None
        assert (await http.post("/v1/captions", files=files(RED))).status_code == 200


async def test_no_model_is_a_404(settings: Settings) -> None:
    async with client(settings) as http:
        problem(await http.post("/v1/captions", files=files(RED)), 404, "not_found")


async def test_health_and_metrics(settings: Settings, shelf: Shelf) -> None:
    async with client(settings, model(shelf)) as http:
        assert (await http.get("/healthz")).json() == {"status": "alive"}
        await http.post("/v1/captions", files=files(RED))
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["parts"]["models"]["detail"][0]["state"] == "loaded"
        metrics = (await http.get("/metrics")).text
    for name in ("queue_places", "wait_seconds", "infer_seconds", "prepare_seconds", "words"):
        assert f"pixelgate_caption_{name}" in metrics


async def test_a_batch_that_hangs_makes_the_service_unready(settings: Settings, shelf: Shelf) -> None:
    shelf.painter.free.clear()
    async with client(settings.model_copy(update={"stuck_after_s": 0.05}), model(shelf)) as http:
        asked = asyncio.create_task(http.post("/v1/captions", files=files(RED)))
        async with asyncio.timeout(20):
            while (await http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.02)
        shelf.painter.free.set()
        assert (await asked).status_code == 200
        assert (await http.get("/readyz")).status_code == 200


async def test_a_token_is_needed_where_one_is_set(settings: Settings, shelf: Shelf) -> None:
    settings = Settings.model_validate({**settings.model_dump(), "service_token": "f3c1-not-a-placeholder"})
    async with client(settings, model(shelf)) as http:
        problem(await http.get("/v1/models"), 401, "unauthorized")
        given = {"X-Pixelgate-Service-Token": "f3c1-not-a-placeholder"}
        assert (await http.get("/v1/models", headers=given)).status_code == 200


async def test_the_committed_openapi_file_is_what_the_service_says(settings: Settings) -> None:
    async with client(settings) as http:
        now = (await http.get("/openapi.json")).json()
    assert json.loads(OPENAPI.read_text()) == now, "run `python -m caption_service.openapi > openapi.json`"
