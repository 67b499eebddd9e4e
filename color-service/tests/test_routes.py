from __future__ import annotations

import asyncio
import json
import resource
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from color_pictures import BLUE, RED, encoded, opened, plain, scenery
from color_service.app import create_app
from color_service.jobs import Jobs
from color_service.settings import Settings
from pixelgate_common.contracts.color import MAX_IMAGES, Complemented, Palettes, Ranked
from pixelgate_common.contracts.models import ServedModels
from pydantic import ValidationError
from structlog.testing import capture_logs

OPENAPI = Path(__file__).parents[1] / "openapi.json"
RED_PNG, BLUE_PNG = plain(RED), plain(BLUE)
NOT_A_PICTURE = b"text"


@asynccontextmanager
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


def jobs_of(http: httpx.AsyncClient) -> Jobs:
    transport = http._transport
    assert isinstance(transport, httpx.ASGITransport)
    jobs: Jobs = transport.app.state.jobs  # type: ignore[attr-defined]
    return jobs


def files(*pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("a.png", picture)) for picture in pictures]


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"].endswith(f":{code}")
    return body


async def test_pictures_have_palettes_and_a_bad_one_its_own_problem(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/palettes", files=files(RED_PNG, NOT_A_PICTURE, plain((*BLUE, 0))))
    answer = Palettes.model_validate(response.json())
    assert (answer.model, answer.fingerprint) == ("lab-kmeans", "palette/lab-kmeans-8/1")
    red, bad, hidden = answer.items
    assert [(color.hex, color.share) for color in red.palette] == [("#ef4135", 1)]
    assert red.foreground is None
    assert red.problem is None
    assert bad.problem is not None
    assert (bad.problem.status, bad.problem.code, bad.palette) == (422, "not_an_image", [])
    assert hidden.foreground == []
    assert [color.hex for color in hidden.palette] == ["#ffffff"]


async def test_one_picture_may_be_the_body_and_colors_be_limited(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post(
            "/v1/palettes",
            params={"colors": 2, "priority": "bulk", "fingerprint": "palette/lab-kmeans-2/1"},
            content=encoded(scenery(80, 60)),
            headers={"content-type": "image/png"},
        )
    answer = Palettes.model_validate(response.json())
    assert len(answer.items[0].palette) == 2


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"colors": "0"}, 422, "invalid_request"),
        ({"colors": "9"}, 422, "invalid_request"),
        ({"fingerprint": "palette/other-8/1"}, 409, "fingerprint_mismatch"),
        ({"priority": "now"}, 422, "invalid_request"),
    ],
    ids=str,
)
async def test_palettes_asked_for_in_a_way_that_cannot_be(
    settings: Settings, params: dict[str, str], status: int, code: str
) -> None:
    async with client(settings) as http:
        problem(await http.post("/v1/palettes", params=params, files=files(RED_PNG)), status, code)


async def test_too_many_pictures_or_none_are_refused(settings: Settings) -> None:
    async with client(settings) as http:
        for count in (MAX_IMAGES + 1, 0):
            response = await http.post("/v1/palettes", files=files(*[RED_PNG] * count) or [("other", b"x")])
            assert problem(response, 422, "invalid_request")["errors"][0]["field"] == "images"


async def test_palettes_are_ranked(settings: Settings) -> None:
    red, blue = {"lab": [50, 70, 50]}, {"lab": [30, 60, -90], "weight": 0.5}
    async with client(settings) as http:
        response = await http.post("/v1/rank", json={"colors": [red], "palettes": [[blue], [blue, red], [red]]})
        ranked = Ranked.model_validate(response.json()).ranked
        assert [one.index for one in ranked] == [1, 2, 0]
        bad = await http.post("/v1/rank", json={"colors": [red], "palettes": [[{"lab": [1, 2]}]], "extra": 1})
        fields = {one["field"] for one in problem(bad, 422, "invalid_request")["errors"]}
        assert "extra" in fields
        assert any(field.startswith("palettes.0.0.lab") for field in fields)
        grey = {"lab": [50, 0, 0]}
        refused = await http.post("/v1/rank", json={"colors": [grey], "palettes": [[red]], "mode": "complementary"})
        assert problem(refused, 422, "invalid_request")["errors"][0]["field"] == "colors"


async def test_complements(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/complements", json={"colors": ["#ff0000", "#7f7f7f"]})
        assert Complemented.model_validate(response.json()).colors == ["#00ffff", None]
        problem(await http.post("/v1/complements", json={"colors": ["red"]}), 422, "invalid_request")


async def test_two_pictures_are_blended(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post(
            "/v1/blend",
            files={"image_1": ("a.png", plain(RED, (90, 60))), "image_2": ("b.png", BLUE_PNG)},
            data={"position": "0.25", "levels": "2", "direction": "vertical"},
        )
    assert response.headers["content-type"] == "image/png"
    pixels = opened(response.content)
    assert pixels.shape == (60, 90, 3)
    assert (tuple(pixels[10, 5]), tuple(pixels[20, 5])) == (RED, BLUE)


@pytest.mark.parametrize(
    ("sent", "fields", "status", "code", "field"),
    [
        ({"image_1": RED_PNG}, {}, 422, "invalid_request", "image_2"),
        ({"image_1": RED_PNG, "image_2": NOT_A_PICTURE}, {}, 422, "not_an_image", "image_2"),
        ({"image_1": NOT_A_PICTURE, "image_2": RED_PNG}, {}, 422, "not_an_image", "image_1"),
        ({"image_1": RED_PNG[:60], "image_2": RED_PNG}, {}, 422, "broken_image", "image_1"),
        ({"image_1": RED_PNG, "image_2": RED_PNG, "mask": NOT_A_PICTURE}, {}, 422, "not_an_image", "mask"),
        ({"image_1": RED_PNG, "image_2": RED_PNG}, {"levels": "99"}, 422, "invalid_request", "levels"),
        ({"image_1": RED_PNG, "image_2": RED_PNG}, {"colour": "1"}, 422, "invalid_request", "colour"),
    ],
    ids=["no second", "bad second", "bad first", "broken first", "bad mask", "levels", "unknown field"],
)
async def test_a_blend_that_cannot_be_names_the_field(
    settings: Settings, sent: dict[str, bytes], fields: dict[str, str], status: int, code: str, field: str
) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/blend", files={name: ("x", data) for name, data in sent.items()}, data=fields)
    assert problem(response, status, code)["errors"][0]["field"] == field


@pytest.mark.parametrize("form", ["jpeg", "png"])
async def test_a_collage_is_made(settings: Settings, form: str) -> None:
    async with client(settings) as http:
        response = await http.post(
            "/v1/collage",
            files=files(RED_PNG, BLUE_PNG, RED_PNG),
            data={"cell_px": "40", "gap_px": "4", "format": form, "frame_first": "true"},
        )
    assert response.headers["content-type"] == f"image/{form}"
    assert opened(response.content).shape == (92, 92, 3)


async def test_a_collage_that_cannot_be_names_the_field(settings: Settings) -> None:
    async with client(settings.model_copy(update={"max_collage_pixels": 10_000})) as http:
        bad = await http.post("/v1/collage", files=files(RED_PNG, NOT_A_PICTURE), data={"cell_px": "30"})
        assert problem(bad, 422, "not_an_image")["errors"][0]["field"] == "images.1"
        large = await http.post("/v1/collage", files=files(RED_PNG), data={"cell_px": "100"})
        assert problem(large, 422, "invalid_request")["errors"][0]["field"] == "cell_px"
        none = await http.post("/v1/collage", files={"other": b"x"})
        problem(none, 422, "invalid_request")
        twice = await http.post("/v1/collage", files=[*files(RED_PNG), *[("cell_px", (None, b"50"))] * 2])
        assert problem(twice, 422, "invalid_request")["errors"][0]["field"] == "cell_px"


async def test_limits_are_settings(settings: Settings) -> None:
    small = settings.model_copy(update={"max_pixels": 1000, "max_blend_pixels": 100, "max_request_mb": 1})
    async with client(small) as http:
        answer = Palettes.model_validate((await http.post("/v1/palettes", files=files(RED_PNG))).json())
        assert answer.items[0].problem is not None
        assert answer.items[0].problem.status == 413
        tiny = plain(RED, (30, 30))
        blended = await http.post("/v1/blend", files={"image_1": tiny, "image_2": tiny})
        assert opened(blended.content).shape == (10, 10, 3)
        big = b"x" * (1024 * 1024 + 1)
        for path in ("/v1/palettes", "/v1/blend", "/v1/collage", "/v1/rank", "/v1/complements"):
            problem(await http.post(path, content=big), 413, "body_too_large")
    with pytest.raises(ValidationError, match="max_in_flight_mb"):
        Settings(max_request_mb=80, max_in_flight_mb=79)


async def test_more_bytes_than_may_be_held_are_refused_for_a_while(settings: Settings) -> None:
    async with client(settings.model_copy(update={"max_request_mb": 1, "max_in_flight_mb": 1})) as http:

        async def slow() -> AsyncIterator[bytes]:
            # Of unknown length, so all that is allowed is held for it; the others come while it is being read.
            yield RED_PNG
            for path in ("/v1/palettes", "/v1/blend", "/v1/collage", "/v1/rank"):
                refused = await http.post(path, content=b"x" * 2000)
                problem(refused, 503, "overloaded")
                assert int(refused.headers["retry-after"]) >= 1

        answer = await http.post("/v1/palettes", content=slow(), headers={"content-type": "image/png"})
        assert answer.status_code == 200


async def test_interactive_pictures_go_before_bulk_ones(settings: Settings) -> None:
    one_thread = settings.model_copy(update={"threads": 1, "bulk_patience_ms": 60_000.0})
    async with client(one_thread) as http:
        jobs, free, done = jobs_of(http), threading.Event(), list[str]()

        async def ask(priority: str, count: int) -> None:
            await http.post("/v1/palettes", params={"priority": priority}, files=files(*[RED_PNG] * count))
            done.append(priority)

        blocked = asyncio.create_task(jobs.run("palette", free.wait))
        await asyncio.sleep(0)
        bulk = asyncio.create_task(ask("bulk", 40))
        while not jobs._queue._waiting.bulk:
            await asyncio.sleep(0.001)
        interactive = asyncio.create_task(ask("interactive", 1))
        while not jobs._queue._waiting.interactive:
            await asyncio.sleep(0.001)
        free.set()
        await asyncio.gather(blocked, bulk, interactive)
    assert done == ["interactive", "bulk"]


@pytest.mark.parametrize("path", ["/v1/palettes", "/v1/blend", "/v1/collage"])
async def test_two_hundred_requests_at_once_are_answered_or_put_off(settings: Settings, path: str) -> None:
    picture = encoded(scenery(300, 200), "JPEG")
    sent = {"image_1": picture, "image_2": picture} if path == "/v1/blend" else files(*[picture] * 4)
    async with client(settings.model_copy(update={"max_places": 120})) as http:
        assert (await http.post(path, files=sent)).status_code == 200
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = await asyncio.gather(*(http.post(path, files=sent) for _ in range(200)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503}, statuses
        assert statuses[200] >= 20
        for answer in answers:
            if answer.status_code == 503:
                problem(answer, 503, "overloaded")
                assert int(answer.headers["retry-after"]) >= 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024, "KiB"
        assert (await http.post(path, files=sent)).status_code == 200, "normal at once"


async def test_a_defect_is_a_500_without_detail(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("secret path")

    monkeypatch.setattr("color_service.routes.picture_colors", broken)
    async with client(settings) as http:
        with capture_logs() as logged:
            answer = problem(await http.post("/v1/palettes", files=files(RED_PNG)), 500, "internal")
        assert "secret" not in json.dumps(answer)
        assert {"batch_failed", "unhandled_error"} <= {line["event"] for line in logged}
        monkeypatch.undo()
        assert (await http.post("/v1/palettes", files=files(RED_PNG))).status_code == 200


async def test_models_health_and_metrics(settings: Settings) -> None:
    async with client(settings) as http:
        served = ServedModels.model_validate((await http.get("/v1/models")).json())
        assert [(one.slot, one.fingerprint) for one in served.models] == [("palette", "palette/lab-kmeans-8/1")]
        assert (await http.get("/healthz")).json() == {"status": "alive"}
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["parts"]["jobs"]["ready"] is True
        await http.post("/v1/palettes", files=files(RED_PNG))
        metrics = (await http.get("/metrics")).text
    for name in ("color_queue_places", "color_wait_seconds", "color_job_seconds", "request_held_bytes"):
        assert f"pixelgate_{name}" in metrics


async def test_a_job_that_hangs_makes_the_service_unready(settings: Settings) -> None:
    async with client(settings.model_copy(update={"stuck_after_s": 0.01})) as http:
        free = threading.Event()
        hanging = asyncio.create_task(jobs_of(http).run("palette", free.wait))
        await asyncio.sleep(0.05)
        ready = await http.get("/readyz")
        free.set()
        await hanging
        assert ready.status_code == 503
        assert "busy" in ready.json()["parts"]["jobs"]["detail"]
        assert (await http.get("/readyz")).status_code == 200


async def test_a_token_is_needed_where_one_is_set(settings: Settings) -> None:
    settings = Settings.model_validate({**settings.model_dump(), "service_token": "f3c1-not-a-placeholder"})
    async with client(settings) as http:
        problem(await http.get("/v1/models"), 401, "unauthorized")
        given = {"X-Pixelgate-Service-Token": "f3c1-not-a-placeholder"}
        assert (await http.get("/v1/models", headers=given)).status_code == 200


async def test_the_committed_openapi_file_is_what_the_service_says(settings: Settings) -> None:
    async with client(settings) as http:
        now = (await http.get("/openapi.json")).json()
    assert json.loads(OPENAPI.read_text()) == now, "run `python -m color_service.openapi > openapi.json`"
