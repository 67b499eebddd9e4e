"""Several pictures in one: blends and collages, by upload, URL, id and search."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from gateway.testing.embed import vector_of
from gateway.testing.web import pictures_on_the_web
from PIL import Image
from pixelgate_common.contracts.storage import StageResult
from pixelgate_common.vectors import encode_vector

Scene = Callable[..., bytes]


def flat(color: str, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = flat("red"), flat("blue", (80, 50))
HALF = flat("white", (40, 30))


def opened(answer: httpx.Response, kind: str) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == kind
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


class TestBlend:
    @pytest.fixture
    async def web(self) -> AsyncIterator[str]:
        async with pictures_on_the_web({"/red.png": RED, "/blue.png": BLUE, "/mask.png": HALF}) as url:
            yield url

    @pytest.fixture
    async def gateway(self, start: Any) -> AsyncIterator[Any]:
        async with start(fetch_allow=("127.0.0.1/32",)) as running:
            running.storage.add(RED)
            running.storage.add(BLUE)
            running.storage.add(HALF)
            yield running

    async def test_two_uploads(self, gateway: Any) -> None:
        files = {"image_1": ("a.png", RED), "image_2": ("b.png", BLUE)}
        picture = opened(await gateway.client.post("/v1/blend", files=files), "image/png")
        assert picture.size == (40, 30)
        assert (picture.getpixel((1, 15)), picture.getpixel((38, 15))) == ((255, 0, 0), (0, 0, 255))

    async def test_two_urls(self, gateway: Any, web: str) -> None:
        body = {"url_1": f"{web}/red.png", "url_2": f"{web}/blue.png", "direction": "vertical", "position": 0.25}
        picture = opened(await gateway.client.post("/v1/blend", json=body), "image/png")
        assert (picture.getpixel((20, 2)), picture.getpixel((20, 12))) == ((255, 0, 0), (0, 0, 255))

    async def test_two_stored_ones_and_a_mask(self, gateway: Any, web: str) -> None:
        body = {"image_id_1": 1, "image_id_2": 2, "levels": 3}
        assert opened(await gateway.client.post("/v1/blend", json=body), "image/png").size == (40, 30)
        assert gateway.inner.color.last_fields == {"levels": "3"}
        for mask in ({"mask_id": 3}, {"mask_url": f"{web}/mask.png"}):
            picture = opened(await gateway.client.post("/v1/blend", json=body | mask), "image/png")
            assert picture.getcolors() == [(1200, (255, 0, 0))]

    async def test_every_way_can_be_mixed_in_a_form(self, gateway: Any, web: str) -> None:
        files = {"image_1": ("a.png", BLUE), "mask": ("m.png", HALF)}
        data = {"image_id_2": "1", "position": "0.3"}
        picture = opened(await gateway.client.post("/v1/blend", files=files, data=data), "image/png")
        assert picture.getcolors() == [(4000, (0, 0, 255))]

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            pytest.param({}, 422, "image_1", id="nothing"),
            pytest.param({"image_id_1": 1}, 422, "image_2", id="one"),
            pytest.param({"image_id_1": 1, "url_1": "http://a.b/", "image_id_2": 2}, 422, "image_id_1", id="two-ways"),
            pytest.param({"image_id_1": 1, "image_id_2": 99}, 404, "image_id_2", id="unknown"),
            pytest.param({"image_id_1": 1, "image_id_2": 2, "mask_id": 99}, 404, "mask_id", id="unknown-mask"),
            pytest.param({"image_id_1": 1, "url_2": "http://10.0.0.1/a"}, 422, "url_2", id="private-address"),
            pytest.param({"image_id_1": 1, "image_id_2": 2, "levels": 13}, 422, "levels", id="levels"),
            pytest.param({"image_id_1": 1, "image_id_2": 2, "position": 1.5}, 422, "position", id="position"),
            pytest.param({"image_id_1": 1, "image_id_2": 2, "direction": "up"}, 422, "direction", id="direction"),
            pytest.param({"image_id_1": 1, "image_id_2": 2, "seam": 1}, 422, "seam", id="unknown-field"),
        ],
    )
    async def test_what_cannot_be_blended_names_its_field(
        self, gateway: Any, body: Any, status: int, field: str
    ) -> None:
        answer = await gateway.client.post("/v1/blend", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (status, field)
        assert gateway.inner.color.calls == []

    async def test_a_picture_that_color_service_does_not_take_is_named_as_it_was_sent(self, gateway: Any) -> None:
        gateway.inner.color.refuses = "image_2"
        answer = await gateway.client.post("/v1/blend", json={"image_id_1": 1, "image_id_2": 2})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "image_id_2")

    async def test_a_file_too_large_is_413(self, start: Any) -> None:
        async with start(max_upload_mb=1) as gateway:
            files = {"image_1": ("a.png", RED), "image_2": ("b.png", BLUE + b"\0" * 1_100_000)}
            answer = await gateway.client.post("/v1/blend", files=files)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (413, "image_2")

    async def test_without_color_service_it_is_503(self, gateway: Any) -> None:
        gateway.inner.to_color.down = True
        answer = await gateway.client.post("/v1/blend", json={"image_id_1": 1, "image_id_2": 2})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1


def analysed(gateway: Any, data: bytes) -> int:
    record, _ = gateway.storage.add(data)
    vector = encode_vector(vector_of(data, "clip"))
    work = gateway.storage.work["clip", record.id]
    work.state, work.result = "done", StageResult(image_id=record.id, token="t", took_ms=1, vector=vector)
    return int(record.id)


@pytest.fixture
def library(gateway: Any) -> Any:
    for color in ("red", "lime", "blue", "white"):
        analysed(gateway, flat(color))
    return gateway


class TestCollage:
    async def test_of_ids_in_their_order(self, library: Any) -> None:
        body = {"image_ids": [3, 1, 3, 2], "columns": 2, "cell_px": 50, "gap_px": 0, "format": "png"}
        answer = await library.client.post("/v1/collage", json=body)
        picture = opened(answer, "image/png")
        assert picture.size == (100, 100)
        centres = [picture.getpixel(at) for at in ((25, 25), (75, 25), (25, 75), (75, 75))]
        assert centres == [(0, 0, 255), (255, 0, 0), (0, 0, 255), (0, 255, 0)]
        assert answer.headers["x-pixelgate-image-ids"] == "3,1,3,2"
        assert library.inner.color.last_fields["cell_px"] == "50"
        assert "frame_first" not in library.inner.color.last_fields

    async def test_large_cells_are_made_of_previews(self, library: Any) -> None:
        for cell_px, variant in ((300, "medium"), (301, "preview")):
            await library.client.post("/v1/collage", json={"image_ids": [1], "cell_px": cell_px})
            assert library.storage.variants[-1] == variant

    async def test_of_a_search_by_words(self, library: Any) -> None:
        body = {"search": {"terms": [{"text": "a dog"}], "limit": 3}, "cell_px": 20}
        answer = await library.client.post("/v1/collage", json=body)
        opened(answer, "image/jpeg")
        assert len(answer.headers["x-pixelgate-image-ids"].split(",")) == 3
        assert answer.headers["x-pixelgate-next-cursor"] == "more"
        assert "frame_first" not in library.inner.color.last_fields

    async def test_of_a_search_by_a_stored_picture_that_one_is_first_and_framed(self, library: Any) -> None:
        body = {"search": {"terms": [{"image_id": 2}], "limit": 10}}
        answer = await library.client.post("/v1/collage", json=body)
        opened(answer, "image/jpeg")
        ids = [int(text) for text in answer.headers["x-pixelgate-image-ids"].split(",")]
        assert (ids[0], sorted(ids)) == (2, [1, 2, 3, 4])
        assert library.inner.color.last_fields["frame_first"] == "true"
        assert library.inner.color.last_files["images"][0] == flat("lime")
        await library.client.post("/v1/collage", json={**body, "frame_first": False})
        assert library.inner.color.last_fields["frame_first"] == "false"

    async def test_nothing_found_is_404(self, gateway: Any) -> None:
        answer = await gateway.client.post("/v1/collage", json={"search": {"terms": [{"text": "a"}]}})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")

    async def test_a_hundred_pictures_are_the_most(self, gateway: Any) -> None:
        for number in range(101):
            analysed(gateway, flat(f"#0000{number:02x}", (8, 8)))
        answer = await gateway.client.post("/v1/collage", json={"image_ids": list(range(1, 101)), "cell_px": 16})
        opened(answer, "image/jpeg")
        assert gateway.inner.color.calls[-1][1] == 100
        body = {"search": {"terms": [{"image_id": 1}], "limit": 100}, "cell_px": 16}
        answer = await gateway.client.post("/v1/collage", json=body)
        opened(answer, "image/jpeg")
        assert gateway.inner.color.calls[-1][1] == 100  # the picture searched by, and 99 hits

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            pytest.param({}, 422, "body", id="nothing"),
            pytest.param({"image_ids": []}, 422, "image_ids", id="empty"),
            pytest.param({"image_ids": [1] * 101}, 422, "image_ids", id="101"),
            pytest.param({"image_ids": [1, 99]}, 404, "image_ids.1", id="unknown"),
            pytest.param({"image_ids": [0]}, 422, "image_ids.0", id="id-0"),
            pytest.param({"image_ids": [1], "search": {"terms": [{"text": "a"}]}}, 422, "body", id="both"),
            pytest.param({"search": {"terms": []}}, 422, "search.terms", id="no-terms"),
            pytest.param({"search": {"terms": [{"text": "a"}], "limit": 101}}, 422, "search.limit", id="limit"),
            pytest.param({"image_ids": [1], "columns": 21}, 422, "columns", id="columns"),
            pytest.param({"image_ids": [1], "cell_px": 5000}, 422, "cell_px", id="cell"),
            pytest.param({"image_ids": [1], "background": "white"}, 422, "background", id="no-hex"),
            pytest.param({"image_ids": [1], "format": "gif"}, 422, "format", id="format"),
            pytest.param({"image_ids": [1], "rows": 2}, 422, "rows", id="unknown-field"),
        ],
    )
    async def test_what_cannot_be_laid_out_names_its_field(
        self, library: Any, body: Any, status: int, field: str
    ) -> None:
        answer = await library.client.post("/v1/collage", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (status, field), answer.text
        assert library.inner.color.calls == []

    async def test_a_full_color_service_is_503_with_its_retry_after(self, library: Any) -> None:
        library.inner.color.busy = True
        answer = await library.client.post("/v1/collage", json={"image_ids": [1]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


class TestSearchAnswer:
    async def test_a_search_answers_with_one_picture(self, library: Any) -> None:
        body = {"terms": [{"text": "a dog"}], "answer": "collage", "limit": 2}
        answer = await library.client.post("/v1/search", json=body)
        opened(answer, "image/jpeg")
        assert len(answer.headers["x-pixelgate-image-ids"].split(",")) == 2

    async def test_an_uploaded_picture_is_first_and_framed(self, library: Any, scene: Scene) -> None:
        files = {"image": ("a.png", scene())}
        answer = await library.client.post("/v1/search/by-image", files=files, data={"answer": "collage"})
        opened(answer, "image/jpeg")
        assert library.inner.color.last_files["images"][0] == scene()
        assert library.inner.color.last_fields["frame_first"] == "true"
        assert len(answer.headers["x-pixelgate-image-ids"].split(",")) == 4

    async def test_a_picture_that_hits_shall_not_be_like_is_not_shown(self, library: Any) -> None:
        body = {"terms": [{"text": "a dog"}, {"image_id": 2, "weight": -1}], "answer": "collage"}
        answer = await library.client.post("/v1/search", json=body)
        assert "2" not in answer.headers["x-pixelgate-image-ids"].split(",")
        assert "frame_first" not in library.inner.color.last_fields
