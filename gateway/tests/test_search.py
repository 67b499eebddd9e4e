"""Search: what the terms become, what is refused, and which model the answer says it used."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from gateway.testing.embed import BROKEN, vector_of
from numpy.testing import assert_allclose
from PIL import Image
from pixelgate_common.contracts.storage import StageResult
from pixelgate_common.vectors import decode_vector, encode_vector

Jpeg = Callable[..., bytes]


def analysed(gateway: Any, data: bytes) -> int:
    """Put a picture into storage as the pipeline would leave it."""
    record, _ = gateway.storage.add(data)
    for space in ("clip", "resnet"):
        work = gateway.storage.work[space, record.id]
        vector = encode_vector(vector_of(data, space))
        work.state, work.result = "done", StageResult(image_id=record.id, token="t", took_ms=1, vector=vector)
    return int(record.id)


def asked_vector(gateway: Any) -> Any:
    (query,) = gateway.storage.searches[-1].vectors
    return decode_vector(query.vector)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


async def test_words_become_a_vector_and_a_ranking_by_words(gateway: Any) -> None:
    answer = await gateway.client.get("/v1/search", params={"q": "red car", "limit": 7})
    assert answer.status_code == 200
    assert answer.json() == {"hits": [], "next_cursor": None, "models": {"clip": "fake-clip/1"}}
    (asked,) = gateway.storage.searches
    assert_allclose(asked_vector(gateway), vector_of(b"red car", "clip"), atol=1e-6)
    assert (asked.words.text, asked.limit, asked.vectors[0].fingerprint) == ("red car", 7, "fake-clip/1")
    assert gateway.embed.calls == [("texts", 1, "interactive")]


async def test_terms_of_all_kinds_become_one_unit_vector(gateway: Any, jpeg: Jpeg) -> None:
    stored = analysed(gateway, jpeg(1))
    sent = jpeg(2)
    terms = [
        {"text": "a dog", "weight": 2},
        {"text": "snow", "weight": -0.5},
        {"image_id": stored, "weight": 1.5},
        {"image": base64.b64encode(sent).decode(), "weight": -1},
    ]
    answer = await gateway.client.post("/v1/search", json={"terms": terms})
    assert answer.status_code == 200
    expected = (
        2 * vector_of(b"a dog", "clip")
        - 0.5 * vector_of(b"snow", "clip")
        + 1.5 * vector_of(jpeg(1), "clip")
        - vector_of(sent, "clip")
    )
    assert_allclose(asked_vector(gateway), unit(expected), atol=1e-6)
    assert gateway.storage.searches[-1].words.text == "a dog"  # what is not wanted is not looked up as words


async def test_a_stored_picture_is_searched_by_its_stored_vector_and_is_no_hit(gateway: Any, jpeg: Jpeg) -> None:
    first, second = analysed(gateway, jpeg(1)), analysed(gateway, jpeg(2))
    body = {"terms": [{"image_id": first}], "space": "resnet"}
    answer = (await gateway.client.post("/v1/search", json=body)).json()
    assert [hit["image"]["id"] for hit in answer["hits"]] == [second]
    assert answer["models"] == {"resnet": "fake-resnet/1"}
    assert gateway.embed.calls == []
    with_self = (await gateway.client.post("/v1/search", json={**body, "include_self": True})).json()
    assert with_self["hits"][0]["image"]["id"] == first
    assert with_self["hits"][0]["score"] == pytest.approx(1.0)


async def test_a_picture_that_has_no_vector_yet_is_embedded_from_its_preview(gateway: Any, jpeg: Jpeg) -> None:
    record, _ = gateway.storage.add(jpeg(5))
    answer = await gateway.client.post("/v1/search", json={"terms": [{"image_id": record.id}]})
    assert answer.status_code == 200
    assert_allclose(asked_vector(gateway), vector_of(jpeg(5), "clip"), atol=1e-6)


async def test_an_unknown_picture_is_404_with_the_field_named(gateway: Any) -> None:
    answer = await gateway.client.post("/v1/search", json={"terms": [{"text": "a"}, {"image_id": 77}]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (404, "terms.1.image_id")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({}, "terms", id="nothing"),
        pytest.param({"terms": []}, "terms", id="no-terms"),
        pytest.param({"terms": [{}]}, "terms.0", id="empty-term"),
        pytest.param({"terms": [{"text": "a", "image_id": 1}]}, "terms.0", id="two-kinds"),
        pytest.param({"terms": [{"text": "a", "weight": 0}]}, "terms.0", id="weight-0"),
        pytest.param({"terms": [{"text": "a", "weight": "heavy"}]}, "terms.0.weight", id="weight-text"),
        pytest.param({"terms": [{"text": "a", "weight": 101}]}, "terms.0.weight", id="weight-101"),
        pytest.param({"terms": [{"text": "  "}]}, "terms.0.text", id="blank"),
        pytest.param({"terms": [{"text": "a\0b"}]}, "terms.0.text", id="nul"),
        pytest.param({"terms": [{"text": "a" * 2001}]}, "terms.0.text", id="long"),
        pytest.param({"terms": [{"text": "a"}] * 17}, "terms", id="17-terms"),
        pytest.param({"terms": [{"color": "reddish"}]}, "terms.0.color", id="no-color"),
        pytest.param({"terms": [{"color": "#ff00"}]}, "terms.0.color", id="four-digits"),
        pytest.param({"terms": [{"color": "red", "text": "a"}]}, "terms.0", id="color-and-text"),
        pytest.param({"terms": [{"text": "a"}, {"color": "red", "weight": -1}]}, "terms.1.weight", id="negative-color"),
        pytest.param({"terms": [{"palette_of": 0}]}, "terms.0.palette_of", id="palette-of-0"),
        pytest.param({"terms": [{"color": "#888"}], "mode": "complementary"}, "mode", id="only-greys"),
        pytest.param({"terms": [{"color": "red"}], "mode": "opposite"}, "mode", id="unknown-mode"),
        pytest.param({"terms": [{"color": "red"}], "color_of": "edge"}, "color_of", id="color-of"),
        pytest.param({"terms": [{"image": "???"}]}, "terms.0.image", id="no-base64"),
        pytest.param({"terms": [{"image": "data:image/png,abc"}]}, "terms.0.image", id="no-base64-uri"),
        pytest.param({"terms": [{"image_url": "http://127.0.0.1/"}]}, "terms.0.image_url", id="own-address"),
        pytest.param({"terms": [{"text": "a"}], "limit": 0}, "limit", id="limit-0"),
        pytest.param({"terms": [{"text": "a"}], "limit": 201}, "limit", id="limit-201"),
        pytest.param({"terms": [{"text": "a"}], "space": "faces"}, "space", id="space"),
        pytest.param({"terms": [{"text": "a"}], "space": "resnet"}, "terms.0.text", id="text-for-resnet"),
        pytest.param({"terms": [{"text": "a"}], "mode": "complementary"}, "mode", id="mode-without-colors"),
        pytest.param({"terms": [{"text": "a"}], "color_of": "foreground"}, "color_of", id="color-of-nothing"),
        pytest.param({"terms": [{"text": "a"}], "collapse": True}, "collapse", id="collapse"),
        pytest.param({"terms": [{"text": "a"}], "min_relevance": 0.5}, "min_relevance", id="min-relevance"),
        pytest.param({"terms": [{"text": "a"}], "answer": "poem"}, "answer", id="answer"),
        pytest.param({"terms": [{"text": "a"}], "answer": "collage", "limit": 101}, "limit", id="large-collage"),
        pytest.param({"terms": [{"text": "a"}], "filter": {"field": "wdith", "eq": 1}}, "filter", id="filter"),
        pytest.param({"terms": [{"text": "a"}, {"text": "a", "weight": -1}]}, "terms", id="cancel-out"),
        pytest.param({"terms": [{"text": "a"}], "colour": "red"}, "colour", id="unknown"),
    ],
)
async def test_a_search_that_cannot_be_is_422_with_the_field_named(gateway: Any, body: Any, field: str) -> None:
    answer = await gateway.client.post("/v1/search", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == field
    assert not gateway.storage.searches


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": "a", "collapse": "1"}, "collapse"),
        ({"q": "a", "filter": "{"}, "filter"),
        ({"q": "a", "limit": "many"}, "limit"),
    ],
)
async def test_a_short_search_that_cannot_be_names_the_field(gateway: Any, params: Any, field: str) -> None:
    answer = await gateway.client.get("/v1/search", params=params)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


async def test_filter_and_page_are_passed_on(gateway: Any) -> None:
    tree = {"any": [{"field": "tags", "in": ["a", "b"]}, {"not": {"field": "width", "lt": 10}}]}
    body = {"terms": [{"text": "a"}], "filter": tree, "cursor": "abc", "limit": 3, "answer": "json"}
    assert (await gateway.client.post("/v1/search", json=body)).status_code == 200
    short = {"q": "a", "filter": json.dumps(tree), "cursor": "abc", "limit": "3"}
    assert (await gateway.client.get("/v1/search", params=short)).status_code == 200
    first, second = gateway.storage.searches
    assert first == second
    assert (first.cursor, first.limit) == ("abc", 3)
    assert first.filter.model_dump(by_alias=True, exclude_none=True) == tree


async def test_a_model_that_changed_meanwhile_is_noticed_and_named(gateway: Any) -> None:
    assert (await gateway.client.get("/v1/search", params={"q": "a"})).json()["models"] == {"clip": "fake-clip/1"}
    gateway.embed.version = "2"
    assert (await gateway.client.get("/v1/search", params={"q": "a"})).json()["models"] == {"clip": "fake-clip/2"}
    assert gateway.storage.searches[-1].vectors[0].fingerprint == "fake-clip/2"


async def test_an_embed_service_that_is_full_is_503_with_its_retry_after(gateway: Any) -> None:
    gateway.embed.busy = True
    answer = await gateway.client.get("/v1/search", params={"q": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


@pytest.mark.parametrize("which", ["to_storage", "to_embed"])
async def test_a_service_that_is_away_is_503_with_retry_after(gateway: Any, which: str) -> None:
    getattr(gateway.inner, which).down = True
    answer = await gateway.client.get("/v1/search", params={"q": "a"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "Traceback" not in answer.text


async def test_a_connection_that_breaks_once_is_not_noticed(gateway: Any) -> None:
    gateway.inner.to_storage.faults = [(httpx.ReadError("cut"), False)]
    gateway.inner.to_embed.faults = [(httpx.RemoteProtocolError("cut"), False)]
    assert (await gateway.client.get("/v1/search", params={"q": "a"})).status_code == 200


class TestByImage:
    async def test_an_uploaded_picture_finds_itself(self, gateway: Any, jpeg: Jpeg) -> None:
        wanted = analysed(gateway, jpeg(3))
        analysed(gateway, jpeg(4))
        answer = await gateway.client.post(
            "/v1/search/by-image", files={"image": ("q.jpg", jpeg(3))}, data={"limit": "1", "space": "resnet"}
        )
        assert answer.status_code == 200
        (hit,) = answer.json()["hits"]
        assert (hit["image"]["id"], answer.json()["models"]) == (wanted, {"resnet": "fake-resnet/1"})
        assert hit["score"] == pytest.approx(1.0)
        assert gateway.embed.calls == [("images", 1, "interactive")]

    async def test_form_fields_are_those_of_the_json_search(self, gateway: Any, jpeg: Jpeg) -> None:
        tree = {"field": "tags", "eq": "a"}
        fields = {
            "weight": "2",
            "terms": json.dumps([{"text": "at night", "weight": -1}]),
            "filter": json.dumps(tree),
            "limit": "3",
            "cursor": "abc",
            "include_self": "true",
        }
        answer = await gateway.client.post("/v1/search/by-image", files={"image": ("q.jpg", jpeg(3))}, data=fields)
        assert answer.status_code == 200, answer.text
        (asked,) = gateway.storage.searches
        expected = unit(2 * vector_of(jpeg(3), "clip") - vector_of(b"at night", "clip"))
        assert_allclose(asked_vector(gateway), expected, atol=1e-6)
        assert (asked.limit, asked.cursor, asked.words) == (3, "abc", None)
        assert asked.filter.model_dump(exclude_none=True) == tree

    async def test_a_crop_is_cut_out_of_the_upright_picture(self, gateway: Any) -> None:
        picture = Image.new("RGB", (40, 20), "red")
        picture.paste("blue", (0, 0, 10, 20))
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise: 20 wide, 40 high, the blue part on top
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", exif=exif)
        answer = await gateway.client.post(
            "/v1/search/by-image", files={"image": ("q.png", buffer.getvalue())}, data={"crop": "-5,0,100,10"}
        )
        assert answer.status_code == 200, answer.text
        part = Image.open(io.BytesIO(gateway.embed.last_inputs[0]))
        assert part.size == (20, 10)
        assert part.convert("RGB").getcolors() == [(200, (0, 0, 255))]

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            pytest.param({"crop": "1,2,3"}, "crop.3", id="three-numbers"),
            pytest.param({"crop": "a,b,c,d"}, "crop.0", id="words"),
            pytest.param({"crop": "0,0,0,5"}, "crop", id="no-width"),
            pytest.param({"crop": "nan,0,5,5"}, "crop", id="nan"),
            pytest.param({"crop": "500,500,5,5"}, "crop", id="outside"),
            pytest.param({"weight": "0"}, "body", id="weight-0"),
            pytest.param({"limit": "0"}, "limit", id="limit"),
            pytest.param({"terms": "[{}]"}, "terms.0", id="terms"),
            pytest.param({"terms": "{"}, "terms", id="terms-json"),
            pytest.param({"mode": "complementary"}, "mode", id="mode"),
            pytest.param({"match": "palette", "weight": "-1"}, "weight", id="negative-palette"),
            pytest.param({"match": "smell"}, "match", id="match"),
            pytest.param({"filter": '{"field": "x", "eq": 1}'}, "filter", id="filter"),
            pytest.param({"limits": "3"}, "limits", id="unknown"),
            pytest.param({"limit": ["3", "4"]}, "limit", id="twice"),
            pytest.param({"space": "resnet", "terms": '[{"text": "a"}]'}, "terms.0.text", id="text-for-resnet"),
        ],
    )
    async def test_a_bad_field_is_422_with_its_name(self, gateway: Any, jpeg: Jpeg, fields: Any, field: str) -> None:
        files = {"image": ("q.jpg", jpeg(3))}
        answer = await gateway.client.post("/v1/search/by-image", files=files, data=fields)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field

    @pytest.mark.parametrize(
        ("data", "status", "field"),
        [
            pytest.param(BROKEN, 422, "image", id="broken"),
            pytest.param(b"\xff\xd8\xff" + b"\0" * 30_000_000, 413, None, id="30-MB"),
        ],
    )
    async def test_a_bad_picture_is_a_problem(self, gateway: Any, data: bytes, status: int, field: str | None) -> None:
        answer = await gateway.client.post("/v1/search/by-image", files={"image": ("q.jpg", data)})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert [error["field"] for error in answer.json().get("errors", [])] == ([field] if field else [])

    async def test_a_bomb_is_refused_by_its_size_before_it_is_cropped(self, start: Any, jpeg: Jpeg) -> None:
        async with start(max_pixels=1000) as gateway:
            files = {"image": ("q.jpg", jpeg(3))}
            answer = await gateway.client.post("/v1/search/by-image", files=files, data={"crop": "0,0,5,5"})
            assert (answer.status_code, answer.json()["type"]) == (413, "urn:pixelgate:problem:image_too_large")

    async def test_two_pictures_are_one_too_many(self, gateway: Any, jpeg: Jpeg) -> None:
        files = [("image", ("a.jpg", jpeg(1))), ("image", ("b.jpg", jpeg(2)))]
        answer = await gateway.client.post("/v1/search/by-image", files=files)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "image")
