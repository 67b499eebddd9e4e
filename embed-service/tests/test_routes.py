from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from embed_fakes import ColorRunner, fake_model, jpeg, kept
from embed_service.app import create_app
from embed_service.loading import Model
from embed_service.settings import Settings
from pixelgate_common.contracts.embed import MAX_IMAGES, MAX_TEXT_CHARS, MAX_TEXTS, Embedded, EmbedModels
from pixelgate_common.vectors import decode_vector

OPENAPI = Path(__file__).parents[1] / "openapi.json"
RED, GREEN = jpeg((250, 5, 5)), jpeg((5, 250, 5))


@asynccontextmanager
async def client(settings: Settings, models: dict[str, list[Model]] | None = None) -> AsyncIterator[httpx.AsyncClient]:
    if models is None:
        models = {"clip": [fake_model()], "resnet": [fake_model("resnet", "resnet-fake", texts=False)]}
    app = create_app(settings.model_copy(update={"models": "starter"}), models=kept(models))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


def files(*pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("a.jpg", picture)) for picture in pictures]


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"].endswith(f":{code}")
    return body


async def test_pictures_become_vectors_and_a_bad_one_has_its_own_problem(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/embed/images", files=files(RED, b"text", GREEN), params={"priority": "bulk"})
    answer = Embedded.model_validate(response.json())
    assert (answer.slot, answer.model, answer.fingerprint, answer.dim) == ("clip", "clip/fake", "clip-fake", 3)
    assert [item.vector and int(decode_vector(item.vector).argmax()) for item in answer.items] == [0, None, 1]
    assert answer.items[1].problem is not None
    assert answer.items[1].problem.status == 422
    assert answer.items[1].problem.type.endswith("not_an_image")


async def test_one_picture_may_be_the_whole_body(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post(
            "/v1/embed/images", content=RED, headers={"content-type": "image/jpeg"}, params={"slot": "resnet"}
        )
    answer = Embedded.model_validate(response.json())
    assert answer.fingerprint == "resnet-fake"
    assert answer.items[0].vector is not None


async def test_texts_become_vectors_in_the_same_space(settings: Settings) -> None:
    async with client(settings) as http:
        response = await http.post("/v1/embed/texts", json={"texts": ["a dog", "ein Hund"], "fingerprint": "clip-fake"})
    answer = Embedded.model_validate(response.json())
    assert answer.dim == 3
    assert all(item.vector and len(decode_vector(item.vector)) == 3 for item in answer.items)


async def test_models_are_listed(settings: Settings) -> None:
    async with client(settings) as http:
        answer = EmbedModels.model_validate((await http.get("/v1/models")).json())
    assert answer.set == "starter"
    assert [(model.slot, model.inputs) for model in answer.models] == [
        ("clip", ["image", "text"]),
        ("resnet", ["image"]),
    ]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"texts": ["a"], "slot": "dino"}, 404, "unknown_slot", "slot"),
        ({"texts": ["a"], "slot": "resnet"}, 422, "invalid_request", "slot"),
        ({"texts": ["a"], "fingerprint": "clip-other"}, 409, "fingerprint_mismatch", "fingerprint"),
        ({"texts": []}, 422, "invalid_request", "texts"),
        ({"texts": [""]}, 422, "invalid_request", "texts.0"),
        ({"texts": ["a"] * (MAX_TEXTS + 1)}, 422, "invalid_request", "texts"),
        ({"texts": ["a" * (MAX_TEXT_CHARS + 1)]}, 422, "invalid_request", "texts.0"),
        ({"texts": ["a"], "priority": "now"}, 422, "invalid_request", "priority"),
        ({"texts": ["a"], "extra": 1}, 422, "invalid_request", "extra"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else str(value),
)
async def test_texts_that_cannot_be_embedded(
    settings: Settings, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    async with client(settings) as http:
        answer = problem(await http.post("/v1/embed/texts", json=body), status, code)
    assert answer["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"slot": "dino"}, 404, "unknown_slot"),
        ({"slot": "UPPER"}, 422, "invalid_request"),
        ({"fingerprint": "clip-other"}, 409, "fingerprint_mismatch"),
        ({"fingerprint": "not a name"}, 422, "invalid_request"),
        ({"priority": "now"}, 422, "invalid_request"),
    ],
    ids=str,
)
async def test_pictures_asked_for_in_a_way_that_cannot_be(
    settings: Settings, params: dict[str, str], status: int, code: str
) -> None:
    async with client(settings) as http:
        problem(await http.post("/v1/embed/images", files=files(RED), params=params), status, code)


async def test_too_many_pictures_or_none_are_refused(settings: Settings) -> None:
    async with client(settings) as http:
        ok = await http.post("/v1/embed/images", files=files(*[RED] * MAX_IMAGES))
        assert len(ok.json()["items"]) == MAX_IMAGES
        many = problem(
            await http.post("/v1/embed/images", files=files(*[RED] * (MAX_IMAGES + 1))), 422, "invalid_request"
        )
        assert many["errors"][0]["field"] == "images"
        problem(await http.post("/v1/embed/images", json={"images": []}), 422, "invalid_request")
        problem(await http.post("/v1/embed/images"), 422, "invalid_request")


async def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length(settings: Settings) -> None:
    async with client(settings.model_copy(update={"max_request_mb": 1})) as http:
        big = b"x" * (1024 * 1024 + 1)

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield big[: 100 * 1024]

        problem(
            await http.post("/v1/embed/images", content=big, headers={"content-type": "image/png"}),
            413,
            "body_too_large",
        )
        problem(
            await http.post("/v1/embed/images", content=chunks(), headers={"content-type": "image/png"}),
            413,
            "body_too_large",
        )
        problem(await http.post("/v1/embed/texts", content=b" " * (5 * 1024 * 1024)), 413, "body_too_large")


async def test_more_bytes_than_may_be_held_are_refused_for_a_while(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_request_mb": 2, "max_in_flight_mb": 2})
    async with client(settings) as http:

        async def endless() -> AsyncIterator[bytes]:
            # Of unknown length, so all that is allowed is held for it; the other request comes while it is being read.
            yield RED
            refused = await http.post("/v1/embed/images", files=files(RED))
            problem(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1

        slow = await http.post("/v1/embed/images", content=endless(), headers={"content-type": "image/jpeg"})
        assert slow.status_code == 200
        assert (await http.post("/v1/embed/images", files=files(RED))).status_code == 200, "the bytes are free again"


async def test_a_full_queue_is_503_with_retry_after(settings: Settings) -> None:
    async with client(settings.model_copy(update={"max_places": 8, "max_batch": 4})) as http:
        with http_app(http).state.embedder._served["clip"][0].images.admit(6):
            response = await http.post("/v1/embed/images", files=files(RED, RED, RED))
            problem(response, 503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
            assert (await http.post("/v1/embed/images", files=files(RED, RED))).status_code == 200


def http_app(http: httpx.AsyncClient) -> Any:
    transport = http._transport
    assert isinstance(transport, httpx.ASGITransport)
    return transport.app


async def test_a_failing_model_is_a_500_without_detail(settings: Settings) -> None:
    model = fake_model()
    assert isinstance(model.image_runner, ColorRunner)
    model.image_runner.error = ValueError("secret path")
    async with client(settings, {"clip": [model]}) as http:
        answer = problem(await http.post("/v1/embed/images", files=files(RED)), 500, "internal")
        assert "secret" not in json.dumps(answer)


async def test_health_and_metrics(settings: Settings) -> None:
    async with client(settings) as http:
        assert (await http.get("/healthz")).json() == {"status": "alive"}
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["parts"]["models"]["detail"][0]["slot"] == "clip"
        await http.post("/v1/embed/images", files=files(RED))
        metrics = (await http.get("/metrics")).text
    for name in (
        "queue_places",
        "wait_seconds",
        "infer_seconds",
        "prepare_seconds",
        "finish_seconds",
    ):
        assert f"pixelgate_embed_{name}" in metrics
    assert "pixelgate_request_held_bytes" in metrics


async def test_a_token_is_needed_where_one_is_set(settings: Settings) -> None:
    settings = Settings.model_validate({**settings.model_dump(), "service_token": "f3c1-not-a-placeholder"})
    async with client(settings) as http:
        problem(await http.get("/v1/models"), 401, "unauthorized")
        given = {"X-Pixelgate-Service-Token": "f3c1-not-a-placeholder"}
        assert (await http.get("/v1/models", headers=given)).status_code == 200


async def test_the_committed_openapi_file_is_what_the_service_says(settings: Settings) -> None:
    async with client(settings) as http:
        now = (await http.get("/openapi.json")).json()
    assert json.loads(OPENAPI.read_text()) == now, "run `python -m embed_service.openapi > openapi.json`"
