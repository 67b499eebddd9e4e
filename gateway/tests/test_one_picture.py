"""What one picture tells: by upload, by URL and by id; what is refused, and what happens when a service is away."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from gateway.testing.caption import caption_of
from gateway.testing.color import palette_of
from gateway.testing.detect import SCORE
from gateway.testing.web import pictures_on_the_web
from PIL import Image
from pixelgate_common.contracts.storage import STAGES, ObjectFound, StageOfImage

Scene = Callable[..., bytes]
ROUTES = ("caption", "objects", "palette", "cutout")
SERVICE_OF = {"caption": "caption", "objects": "detect", "palette": "color", "cutout": "detect"}
NO_PICTURE = b"no picture" * 30


@pytest.fixture
async def web(scene: Scene) -> AsyncIterator[str]:
    async with pictures_on_the_web({"/scene.png": scene()}) as url:
        yield url


async def ask(gateway: Any, what: str, way: str, data: bytes, web: str = "", **options: Any) -> httpx.Response:
    answer: httpx.Response
    if way == "upload":
        fields = {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()
        }
        answer = await gateway.client.post(f"/v1/{what}", files={"image": ("a.png", data)}, data=fields)
    elif way == "url":
        answer = await gateway.client.post(f"/v1/{what}", json={"url": f"{web}/scene.png", **options})
    else:
        record, _ = gateway.storage.add(data)
        answer = await gateway.client.post(f"/v1/{what}", json={"image_id": record.id, **options})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture
async def open_gateway(start: Any) -> AsyncIterator[Any]:
    async with start(fetch_allow=("127.0.0.1/32",)) as running:
        yield running


@pytest.mark.parametrize("way", ["upload", "url", "id"])
class TestEveryWay:
    async def test_a_caption(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        answer = await ask(open_gateway, "caption", way, scene(), web, max_words=3)
        assert answer.json() == {"caption": "a picture of", "model": "fake caption", "fingerprint": "fake-caption/1"}
        assert open_gateway.inner.caption.calls == [("caption", 1, "interactive")]

    async def test_objects(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        open_gateway.storage.size = (256, 96)  # a stored original that is wider than its preview
        answer = (await ask(open_gateway, "objects", way, scene(), web)).json()
        (found,) = answer["objects"]
        assert (found["label"], found["score"], answer["model"]) == ("thing", SCORE, "fake objects")
        if way == "id":
            assert (answer["width"], answer["height"], found["box"]) == (256, 96, [64, 24, 128, 48])
        else:
            assert (answer["width"], answer["height"], found["box"]) == (64, 48, [16, 12, 32, 24])

    async def test_only_sure_objects(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        answer = await ask(open_gateway, "objects", way, scene(), web, min_score=0.9)
        assert answer.json()["objects"] == []

    async def test_objects_drawn(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        answer = await ask(open_gateway, "objects", way, scene(), web, annotated=True)
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-pixelgate-model"] == "fake objects"
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.size == (64, 48)
        assert picture.getpixel((30, 12))[1] > 150, "no green line on the red box's upper edge"

    async def test_a_palette(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        answer = (await ask(open_gateway, "palette", way, scene(), web, colors=2)).json()
        assert answer["palette"] == palette_of(scene(), 2).model_dump(mode="json")["palette"]
        assert (answer["foreground"], answer["model"]) == (None, "fake palette")

    async def test_a_cutout(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        answer = await ask(open_gateway, "cutout", way, scene(), web)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-pixelgate-model"] == "fake cutout"
        picture = Image.open(io.BytesIO(answer.content))
        assert (picture.mode, picture.getchannel("A").getbbox()) == ("RGBA", (16, 12, 48, 36))

    async def test_a_cutout_with_options(self, open_gateway: Any, web: str, scene: Scene, way: str) -> None:
        mask = Image.open(io.BytesIO((await ask(open_gateway, "cutout", way, scene(), web, mask_only=True)).content))
        assert (mask.mode, mask.getbbox()) == ("L", (16, 12, 48, 36))
        options = {"trim": True, "background": "#00ff00", "model": "u2net"}
        trimmed = Image.open(io.BytesIO((await ask(open_gateway, "cutout", way, scene(), web, **options)).content))
        assert trimmed.size == (32, 24)
        assert open_gateway.inner.detect.last_query["model"] == "u2net"


@pytest.mark.parametrize("what", ROUTES)
@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        pytest.param({}, 422, "image", id="nothing"),
        pytest.param({"url": "http://a.example/x.jpg", "image_id": 1}, 422, "image_id", id="two-sources"),
        pytest.param({"image": "aGk="}, 422, "image", id="a-file-in-json"),
        pytest.param({"image_id": 77}, 404, "image_id", id="unknown-id"),
        pytest.param({"image_id": 0}, 422, "image_id", id="id-0"),
        pytest.param({"url": "http://127.0.0.1/a.jpg"}, 422, "url", id="own-address"),
        pytest.param({"url": "file:///etc/passwd"}, 422, "url", id="no-web-address"),
        pytest.param({"image_id": 1, "size": 3}, 422, "size", id="unknown-option"),
        pytest.param([1], 422, "body", id="no-object"),
    ],
)
async def test_a_request_that_cannot_be_names_its_field(
    gateway: Any, what: str, body: Any, status: int, field: str
) -> None:
    answer = await gateway.client.post(f"/v1/{what}", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["errors"][0]["field"] == field
    assert all(not fake.calls for fake in (gateway.inner.caption, gateway.inner.detect, gateway.inner.color))


@pytest.mark.parametrize(
    ("what", "options", "field"),
    [
        pytest.param("caption", {"max_words": 0}, "max_words", id="no-words"),
        pytest.param("caption", {"min_words": 9, "max_words": 3}, "body", id="words-crossed"),
        pytest.param("objects", {"min_score": 2}, "min_score", id="score-2"),
        pytest.param("objects", {"annotated": "perhaps"}, "annotated", id="annotated"),
        pytest.param("palette", {"colors": 9}, "colors", id="9-colors"),
        pytest.param("cutout", {"background": "green"}, "background", id="no-hex"),
        pytest.param("cutout", {"model": "../u2net"}, "model", id="a-path"),
    ],
)
async def test_an_option_that_cannot_be_is_named_in_json_and_in_forms(
    gateway: Any, scene: Scene, what: str, options: dict[str, Any], field: str
) -> None:
    gateway.storage.add(scene())
    by_json = await gateway.client.post(f"/v1/{what}", json={"image_id": 1, **options})
    fields = {name: str(value) for name, value in options.items()}
    by_form = await gateway.client.post(f"/v1/{what}", files={"image": ("a.png", scene())}, data=fields)
    for answer in (by_json, by_form):
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("what", ROUTES)
async def test_bad_forms_are_refused_with_the_field(gateway: Any, scene: Scene, what: str) -> None:
    post, picture = gateway.client.post, ("a.png", scene())
    two = await post(f"/v1/{what}", files=[("image", picture), ("image", picture)])
    assert (two.status_code, two.json()["errors"][0]["field"]) == (422, "image")
    other = await post(f"/v1/{what}", files={"photo": picture})
    assert (other.status_code, other.json()["errors"][0]["field"]) == (422, "photo")
    as_text = await post(f"/v1/{what}", files={"x": picture}, data={"image": "text"})
    assert as_text.status_code == 422
    neither = await post(f"/v1/{what}", content=b"x", headers={"Content-Type": "text/plain"})
    assert (neither.status_code, neither.json()["errors"][0]["field"]) == (422, "body")
    # A form may also name a stored picture.
    gateway.storage.add(scene())
    by_id = await post(f"/v1/{what}", files={"image_id": (None, "1")})
    assert by_id.status_code == 200, by_id.text


@pytest.mark.parametrize("what", ROUTES)
async def test_bytes_that_are_no_picture_are_422_about_the_field_they_came_by(gateway: Any, what: str) -> None:
    answer = await gateway.client.post(f"/v1/{what}", files={"image": ("a.jpg", NO_PICTURE)})
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:pixelgate:problem:not_an_image"
    assert answer.json()["errors"][0]["field"] == "image"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("what", ROUTES)
async def test_a_file_too_large_is_413(start: Any, scene: Scene, what: str) -> None:
    async with start(max_upload_mb=1) as gateway:
        files = {"image": ("a.png", scene() + b"\0" * (1024 * 1024))}
        answer = await gateway.client.post(f"/v1/{what}", files=files)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (413, "image")
        much = await gateway.client.post(f"/v1/{what}", files={"image": ("a.png", b"\0" * 3_000_000)})
        assert (much.status_code, much.headers["content-type"]) == (413, "application/problem+json")


@pytest.mark.parametrize("what", ROUTES)
class TestAway:
    async def test_only_its_own_routes_are_503(self, gateway: Any, scene: Scene, what: str) -> None:
        service = SERVICE_OF[what]
        getattr(gateway.inner, f"to_{service}").down = True
        files = {"image": ("a.png", scene())}
        answer = await gateway.client.post(f"/v1/{what}", files=files)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["detail"] == f"{service}-service cannot be reached."
        for other in ROUTES:
            if SERVICE_OF[other] != service:
                assert (await gateway.client.post(f"/v1/{other}", files=files)).status_code == 200
        ready = await gateway.client.get("/readyz")
        assert ready.status_code == 200
        assert {name for name, part in ready.json()["parts"].items() if not part["ready"]} == {service}

    async def test_a_full_service_is_503_with_its_retry_after(self, gateway: Any, scene: Scene, what: str) -> None:
        getattr(gateway.inner, SERVICE_OF[what]).busy = True
        answer = await gateway.client.post(f"/v1/{what}", files={"image": ("a.png", scene())})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")

    async def test_what_goes_wrong_inside_is_told_without_detail(self, gateway: Any, scene: Scene, what: str) -> None:
        getattr(gateway.inner, SERVICE_OF[what]).broken = True
        answer = await gateway.client.post(f"/v1/{what}", files={"image": ("a.png", scene())})
        assert answer.status_code == 500
        assert "errors" not in answer.json() or answer.json()["errors"] == []


async def test_pictures_in_memory_are_bounded_over_all_requests(start: Any, inner: Any, scene: Scene) -> None:
    class Waits(httpx.AsyncBaseTransport):
        def __init__(self, line: httpx.AsyncBaseTransport) -> None:
            self.line, self.waiting, self.go = line, 0, asyncio.Event()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.waiting += 1
            await self.go.wait()
            return await self.line.handle_async_request(request)

    line = inner.to_caption = Waits(inner.to_caption)
    async with start(inner, max_upload_mb=3, held_mb=9) as gateway:
        files = {"image": ("a.png", scene() + b"\0" * 2_500_000)}
        running = [asyncio.create_task(gateway.client.post("/v1/caption", files=files)) for _ in range(3)]
        async with asyncio.timeout(20):
            while line.waiting < 3:
                await asyncio.sleep(0.01)
        refused = await gateway.client.post("/v1/caption", files=files)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:pixelgate:problem:overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        line.go.set()
        assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
        assert (await gateway.client.post("/v1/caption", files=files)).status_code == 200


async def test_too_many_analyses_are_refused_and_searches_go_on(start: Any, scene: Scene) -> None:
    async with start(analyses_running=1, analyses_waiting=1) as gateway:
        go, read = asyncio.Event(), 0

        async def slow() -> AsyncIterator[bytes]:
            nonlocal read
            read += 1
            await go.wait()
            yield b"{}"

        async def one() -> httpx.Response:
            headers = {"Content-Type": "application/json"}
            answer: httpx.Response = await gateway.client.post("/v1/objects", content=slow(), headers=headers)
            return answer

        tasks = [asyncio.create_task(one()) for _ in range(2)]
        while read < 1:
            await asyncio.sleep(0)
        for method, path in (("POST", "/v1/blend"), ("POST", "/v1/collage"), ("GET", "/v1/images/1/annotated")):
            refused = await gateway.client.request(method, path)
            assert (refused.status_code, read) == (503, 1), path
            assert int(refused.headers["retry-after"]) >= 1
        assert (await gateway.client.get("/v1/search", params={"q": "a"})).status_code == 200
        go.set()
        assert {(await task).status_code for task in tasks} == {422}


class TestCutoutOfAStored:
    async def test_the_stored_one_is_passed_on_with_its_headers(self, gateway: Any, scene: Scene) -> None:
        gateway.storage.add(scene())
        gateway.storage.made[1, "cutout"] = b"\x89PNG the cutout"
        answer = await gateway.client.get("/v1/images/1/cutout")
        assert (answer.status_code, answer.content) == (200, b"\x89PNG the cutout")
        again = await gateway.client.get("/v1/images/1/cutout", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert gateway.inner.detect.calls == []

    async def test_one_that_is_not_there_is_made_and_not_kept(self, gateway: Any, scene: Scene) -> None:
        gateway.storage.add(scene())
        answer = await gateway.client.get("/v1/images/1/cutout")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert Image.open(io.BytesIO(answer.content)).getchannel("A").getbbox() == (16, 12, 48, 36)
        assert gateway.storage.made == {}

    async def test_of_no_picture_it_is_404(self, gateway: Any) -> None:
        assert (await gateway.client.get("/v1/images/9/cutout")).status_code == 404

    async def test_without_detect_service_it_is_503(self, gateway: Any, scene: Scene) -> None:
        gateway.storage.add(scene())
        gateway.inner.to_detect.down = True
        answer = await gateway.client.get("/v1/images/1/cutout")
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


class TestAnnotated:
    @pytest.fixture
    def stored(self, gateway: Any, scene: Scene) -> Any:
        gateway.storage.size, gateway.storage.stage_names = (128, 96), STAGES
        record, _ = gateway.storage.add(scene())
        record.objects = [ObjectFound(label="thing", score=0.9, box=(20, 20, 40, 40))]
        record.stages["objects"] = StageOfImage(state="done")
        return record

    async def test_the_stored_objects_are_drawn_on_the_preview(self, gateway: Any, stored: Any) -> None:
        answer = await gateway.client.get("/v1/images/1/annotated")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.size == (64, 48)
        assert picture.getpixel((20, 10))[1] > 150, "the box is not where the preview has it"
        assert gateway.inner.detect.calls == [("objects", 1, "interactive")]  # drawn, not looked for again
        assert "annotations" in gateway.inner.detect.last_fields

    async def test_it_is_drawn_again_only_when_the_objects_change(self, gateway: Any, stored: Any) -> None:
        first = await gateway.client.get("/v1/images/1/annotated")
        headers = {"If-None-Match": first.headers["etag"]}
        again = await gateway.client.get("/v1/images/1/annotated", headers=headers)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert len(gateway.inner.detect.calls) == 1
        stored.objects = []
        changed = await gateway.client.get("/v1/images/1/annotated", headers=headers)
        assert changed.status_code == 200
        assert changed.headers["etag"] != first.headers["etag"]

    async def test_where_nobody_has_looked_it_is_done_now(self, gateway: Any, stored: Any) -> None:
        stored.objects, stored.stages["objects"] = [], StageOfImage(state="pending")
        answer = await gateway.client.get("/v1/images/1/annotated")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert [slot for slot, *_ in gateway.inner.detect.calls] == ["objects", "objects"]  # looked for, then drawn

    async def test_of_no_picture_it_is_404(self, gateway: Any) -> None:
        assert (await gateway.client.get("/v1/images/9/annotated")).status_code == 404


async def test_the_caption_of_an_upload_is_that_of_the_stage(gateway: Any, scene: Scene) -> None:
    answer = await gateway.client.post("/v1/caption", files={"image": ("a.png", scene())})
    assert answer.json()["caption"] == caption_of(scene())
