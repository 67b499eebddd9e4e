from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from detect_fakes import (
    BrightDetector,
    BrightGraph,
    encoded,
    fake_detector,
    fake_matte,
    fake_models,
    scenery,
    square_on_black,
)
from detect_service.app import create_app
from detect_service.served import Models
from detect_service.settings import Settings
from PIL import Image
from pixelgate_common.contracts.detect import (
    FINGERPRINT_HEADER,
    MAX_CUTOUT_IMAGES,
    MAX_IMAGES,
    MODEL_HEADER,
    Detected,
)
from pixelgate_common.contracts.models import ServedModels
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.frames import MEDIA_TYPE, decode_frames

OPENAPI = Path(__file__).parents[1] / "openapi.json"
SQUARE = encoded(square_on_black())


@asynccontextmanager
async def client(settings: Settings, models: Models | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, models=models or fake_models())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


def files(*pictures: bytes, name: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, ("a.jpg", picture)) for picture in pictures]


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"].endswith(f":{code}")
    return body


def pngs(response: httpx.Response) -> list[Image.Image | Problem]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    found: list[Image.Image | Problem] = []
    for name, data in decode_frames(response.content):
        assert data is not None
        found.append(Image.open(BytesIO(data)) if name == "png" else Problem.model_validate_json(data))
    return found


def picture(found: Image.Image | Problem) -> Image.Image:
    assert isinstance(found, Image.Image)
    return found


async def test_objects_come_in_order_and_a_bad_picture_has_its_own_problem(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post(
            "/v1/objects", files=files(SQUARE, b"text", encoded(Image.new("RGB", (9, 9)))), params={"priority": "bulk"}
        )
    answer = Detected.model_validate(response.json())
    assert (answer.model, answer.fingerprint) == ("fake", "objects-fake")
    found, bad, nothing = answer.items
    assert (found.width, found.height) == (60, 40)
    assert [(one.label, one.score, one.box) for one in found.objects] == [("bright", 0.8, (20, 10, 20, 20))]
    assert bad.problem is not None
    assert bad.problem.type.endswith("not_an_image")
    assert nothing.problem is None
    assert nothing.objects == []


async def test_boxes_are_in_the_upright_pixels_of_the_picture_that_was_sent(settings: Settings) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90° for viewing
    turned = encoded(square_on_black(600, 400), "JPEG", exif=exif, quality=95)
    async with client(settings) as http:
        response = await http.post("/v1/objects", content=turned, headers={"content-type": "image/jpeg"})
    (item,) = Detected.model_validate(response.json()).items
    assert (item.width, item.height) == (400, 600)
    x, y, width, height = item.objects[0].box
    # Looked at with 64 pixels: as exact as one of them.
    assert np.abs(np.array([x, y, width, height]) - (100, 200, 200, 200)).max() < 20


async def test_min_score_leaves_the_unsure_out(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/objects", files=files(SQUARE), params={"min_score": 0.9})
    assert Detected.model_validate(response.json()).items[0].objects == []


async def test_cutouts_are_frames_and_a_bad_picture_has_its_own_problem(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/cutouts", files=files(SQUARE, b"text"))
    assert (response.headers[MODEL_HEADER], response.headers[FINGERPRINT_HEADER]) == ("fake", "cutout-fake")
    cut, bad = pngs(response)
    cut = picture(cut)
    assert (cut.mode, cut.size) == ("RGBA", (60, 40))
    assert cut.getpixel((30, 20)) == (255, 255, 255, 255)
    assert cut.getpixel((2, 2)) == (0, 0, 0, 0)
    assert isinstance(bad, Problem)
    assert (bad.status, bad.code) == (422, "not_an_image")


async def test_what_is_handed_out_of_a_cutout_can_be_chosen(settings: Settings) -> None:
    async with client(settings) as http:

        async def ask(**params: Any) -> Image.Image:
            return picture(pngs(await http.post("/v1/cutouts", files=files(SQUARE), params=params))[0])

        mask = await ask(mask_only=True)
        assert (mask.mode, mask.getpixel((30, 20)), mask.getpixel((2, 2))) == ("L", 255, 0)
        trimmed = await ask(trim=True)
        assert 20 <= trimmed.width <= 26
        assert 20 <= trimmed.height <= 26
        laid = await ask(background="#1020f0")
        assert (laid.mode, laid.getpixel((30, 20)), laid.getpixel((2, 2))) == ("RGB", (255, 255, 255), (16, 32, 240))


async def test_another_cutout_model_can_be_named_and_a_missing_one_says_what_to_do(settings: Settings) -> None:
    models = Models(set="starter", detectors=[fake_detector()], mattes=[fake_matte("one"), fake_matte("two")])
    async with client(settings, models) as http:
        second = await http.post("/v1/cutouts", files=files(SQUARE), params={"model": "two"})
        assert second.headers[FINGERPRINT_HEADER] == "cutout-two"
        by_name = await http.post("/v1/cutouts", files=files(SQUARE), params={"fingerprint": "cutout-two"})
        assert by_name.headers[MODEL_HEADER] == "two"
        missing = problem(
            await http.post("/v1/cutouts", files=files(SQUARE), params={"model": "u2net"}), 404, "unknown_model"
        )
        assert "pixelgate models pull" in missing["detail"]
        assert missing["errors"][0]["field"] == "model"
        for name in ("..", "...."):
            problem(await http.post("/v1/cutouts", files=files(SQUARE), params={"model": name}), 404, "unknown_model")


async def test_models_are_listed_with_their_state(settings: Settings) -> None:
    async with client(settings) as http:
        before = ServedModels.model_validate((await http.get("/v1/models")).json())
        await http.post("/v1/objects", files=files(SQUARE))
        after = ServedModels.model_validate((await http.get("/v1/models")).json())
    assert before.set == "starter"
    assert [(model.slot, model.state) for model in before.models] == [("objects", "idle"), ("cutout", "idle")]
    assert [(model.slot, model.state) for model in after.models] == [("objects", "loaded"), ("cutout", "idle")]


async def test_slots_that_are_switched_off_are_said(settings: Settings) -> None:
    async with client(settings, Models(set="none", detectors=[], mattes=[])) as http:
        problem(await http.post("/v1/objects", files=files(SQUARE)), 404, "unknown_model")
        problem(await http.post("/v1/cutouts", files=files(SQUARE)), 404, "unknown_model")
        assert (await http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("path", "params", "status", "code", "field"),
    [
        ("objects", {"fingerprint": "objects-other"}, 409, "fingerprint_mismatch", "fingerprint"),
        ("objects", {"min_score": 1.5}, 422, "invalid_request", "min_score"),
        ("objects", {"priority": "now"}, 422, "invalid_request", "priority"),
        ("cutouts", {"fingerprint": "cutout-other"}, 409, "fingerprint_mismatch", "fingerprint"),
        ("cutouts", {"background": "red"}, 422, "invalid_request", "background"),
        ("cutouts", {"model": "a/b"}, 422, "invalid_request", "model"),
        ("cutouts", {"colour": "#ffffff"}, 422, "invalid_request", "colour"),
    ],
    ids=str,
)
async def test_what_cannot_be_asked_for_is_refused(
    settings: Settings, path: str, params: dict[str, Any], status: int, code: str, field: str
) -> None:
    async with client(settings) as http:
        answer = problem(await http.post(f"/v1/{path}", files=files(SQUARE), params=params), status, code)
    assert answer["errors"][0]["field"] == field


async def test_bodies_that_hold_nothing_or_too_much_are_refused(settings: Settings) -> None:
    async with client(settings) as http:
        problem(await http.post("/v1/objects"), 422, "invalid_request")
        problem(await http.post("/v1/objects", files=files(SQUARE, name="picture")), 422, "invalid_request")
        problem(await http.post("/v1/objects", files=files(*[SQUARE] * (MAX_IMAGES + 1))), 422, "invalid_request")
        problem(
            await http.post("/v1/cutouts", files=files(*[SQUARE] * (MAX_CUTOUT_IMAGES + 1))), 422, "invalid_request"
        )
    async with client(settings.model_copy(update={"max_request_mb": 1})) as http:
        big = b"x" * (1024 * 1024 + 1)
        problem(
            await http.post("/v1/cutouts", content=big, headers={"content-type": "image/png"}), 413, "body_too_large"
        )


async def test_boxes_are_drawn(settings: Settings) -> None:
    annotations = {"width": 30, "height": 20, "objects": [{"label": "ball", "score": 0.5, "box": [10, 5, 10, 10]}]}
    plain = encoded(Image.new("RGB", (300, 200), (90, 90, 90)))
    async with client(settings) as http:
        response = await http.post(
            "/v1/annotate", files=files(plain, name="image"), data={"annotations": json.dumps(annotations)}
        )
        assert response.headers["content-type"] == "image/jpeg"
        drawn = np.asarray(Image.open(BytesIO(response.content)).convert("RGB")).astype(int)
        assert drawn.shape == (200, 300, 3)
        assert np.abs(drawn[48:53, 150] - 90).max() > 60, "the upper edge of the box"
        assert np.abs(drawn[100, 150] - 90).max() < 8, "its inside is left as it was"
        missing = await http.post("/v1/annotate", files=files(plain, name="image"))
        assert problem(missing, 422, "invalid_request")["errors"][0]["field"] == "annotations"
        wrong = await http.post(
            "/v1/annotate", files=files(plain, name="image"), data={"annotations": '{"width": 0, "height": 1}'}
        )
        assert problem(wrong, 422, "invalid_request")["errors"][0]["field"] == "annotations.width"
        no_picture = await http.post(
            "/v1/annotate", files=files(b"text", name="image"), data={"annotations": json.dumps(annotations)}
        )
        problem(no_picture, 422, "not_an_image")


ODD_PICTURES = {
    "grey": encoded(scenery(50, 40).convert("L"), "JPEG"),
    "CMYK": encoded(scenery(50, 40).convert("CMYK"), "JPEG"),
    "RGBA": encoded(scenery(50, 40).convert("RGBA")),
    "palette": encoded(scenery(50, 40).convert("P"), "GIF"),
    "one pixel": encoded(scenery(1, 1)),
    "very wide": encoded(scenery(12_000, 200), "JPEG"),
    "very high": encoded(scenery(3, 4000)),
}


@pytest.mark.parametrize("data", ODD_PICTURES.values(), ids=ODD_PICTURES.keys())
async def test_odd_pictures_go_through_all_routes(settings: Settings, data: bytes) -> None:
    with Image.open(BytesIO(data)) as opened:
        size = opened.size
    async with client(settings) as http:
        found = Detected.model_validate((await http.post("/v1/objects", files=files(data))).json()).items[0]
        assert found.problem is None
        assert (found.width, found.height) == size
        for one in found.objects:
            x, y, width, height = one.box
            assert x >= 0
            assert y >= 0
            assert x + width <= size[0] + 0.01
            assert y + height <= size[1] + 0.01
        assert picture(pngs(await http.post("/v1/cutouts", files=files(data)))[0]).size == size
        box = {"label": "東京 ß", "score": 1.0, "box": [-5, 0, size[0], size[1]]}
        annotations = json.dumps({"width": size[0], "height": size[1], "objects": [box]})
        drawn = await http.post("/v1/annotate", files=files(data, name="image"), data={"annotations": annotations})
        assert Image.open(BytesIO(drawn.content)).size == size


async def test_transparent_parts_stay_transparent(settings: Settings) -> None:
    seen_half = square_on_black().convert("RGBA")
    seen_half.paste((255, 255, 255, 0), (0, 0, 30, 40))
    async with client(settings) as http:
        cut = picture(pngs(await http.post("/v1/cutouts", files=files(encoded(seen_half))))[0])
    alpha = cut.getchannel("A")
    assert alpha.getpixel((25, 20)) == 0, "bright, but it was transparent before"
    seen = alpha.getpixel((35, 20))
    assert isinstance(seen, int)
    assert seen > 240


@pytest.mark.parametrize("path", ["objects", "cutouts"])
async def test_200_requests_at_once_are_answered_or_told_when_to_come_again(settings: Settings, path: str) -> None:
    detector, graph = BrightDetector(), BrightGraph()
    detector.may_go.clear()
    graph.may_go.clear()
    settings = settings.model_copy(update={"max_places": 40, "max_cutout_places": 40})
    async with client(settings, fake_models(detector, graph)) as http:
        requests = [asyncio.ensure_future(http.post(f"/v1/{path}", files=files(SQUARE))) for _ in range(200)]
        refused = 0
        while refused < 160:  # nothing is answered yet, so all beyond the places must have been refused
            await asyncio.sleep(0.01)
            refused = sum(request.done() for request in requests)
        detector.may_go.set()
        graph.may_go.set()
        answers = await asyncio.gather(*requests)
        assert sorted(answer.status_code for answer in answers) == [200] * 40 + [503] * 160
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 503)
        assert (await http.post(f"/v1/{path}", files=files(SQUARE))).status_code == 200, "and at once as usual"
        metrics = (await http.get("/metrics")).text
    assert "pixelgate_request_held_bytes 0.0" in metrics
    assert (
        f'pixelgate_detect_queue_places{{slot="{path.removesuffix("s") if path == "cutouts" else path}"}} 0.0'
        in metrics
    )


async def test_more_bytes_than_may_be_held_are_refused_for_a_while(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_request_mb": 2, "max_in_flight_mb": 2})
    async with client(settings) as http:

        async def endless() -> AsyncIterator[bytes]:
            # Of unknown length, so all that is allowed is held for it; the other request comes while it is being read.
            yield SQUARE
            refused = await http.post("/v1/objects", files=files(SQUARE))
            problem(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1

        slow = await http.post("/v1/objects", content=endless(), headers={"content-type": "image/png"})
        assert slow.status_code == 200
        noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)))
        assert len(noise) > 2_000_000
        problem(await http.post("/v1/cutouts", files=files(noise)), 413, "body_too_large")
        assert (await http.post("/v1/cutouts", files=files(SQUARE))).status_code == 200, "the bytes are free again"


async def test_a_failing_model_is_a_500_without_detail(settings: Settings) -> None:
    detector = BrightDetector()
    detector.error = ValueError("secret path")
    async with client(settings, fake_models(detector)) as http:
        answer = problem(await http.post("/v1/objects", files=files(SQUARE, SQUARE)), 500, "internal")
        assert "secret" not in json.dumps(answer)
        detector.error = None
        assert (await http.post("/v1/objects", files=files(SQUARE))).status_code == 200


async def test_an_interactive_picture_goes_before_waiting_bulk_ones(settings: Settings) -> None:
    detector = BrightDetector()
    detector.may_go.clear()
    async with client(settings, fake_models(detector)) as http:
        bulk = asyncio.ensure_future(http.post("/v1/objects", files=files(*[SQUARE] * 20), params={"priority": "bulk"}))
        await asyncio.sleep(0.2)
        urgent = asyncio.ensure_future(http.post("/v1/objects", files=files(SQUARE)))
        await asyncio.sleep(0.2)
        detector.may_go.set()
        await urgent
        assert detector.looked_at < 21
        assert (await bulk).status_code == 200


async def test_health_and_metrics(settings: Settings) -> None:
    async with client(settings) as http:
        assert (await http.get("/healthz")).json() == {"status": "alive"}
        ready = await http.get("/readyz")
        assert [part["slot"] for part in ready.json()["parts"]["models"]["detail"]] == ["objects", "cutout"]
        await http.post("/v1/objects", files=files(SQUARE))
        metrics = (await http.get("/metrics")).text
    for name in ("queue_places", "wait_seconds", "infer_seconds", "prepare_seconds", "finish_seconds"):
        assert f"pixelgate_detect_{name}" in metrics


async def test_a_token_is_needed_where_one_is_set(settings: Settings) -> None:
    settings = Settings.model_validate({**settings.model_dump(), "service_token": "f3c1-not-a-placeholder"})
    async with client(settings) as http:
        problem(await http.get("/v1/models"), 401, "unauthorized")
        given = {"X-Pixelgate-Service-Token": "f3c1-not-a-placeholder"}
        assert (await http.get("/v1/models", headers=given)).status_code == 200


async def test_the_committed_openapi_file_is_what_the_service_says(settings: Settings) -> None:
    async with client(settings) as http:
        now = (await http.get("/openapi.json")).json()
    assert json.loads(OPENAPI.read_text()) == now, "run `python -m detect_service.openapi > openapi.json`"
