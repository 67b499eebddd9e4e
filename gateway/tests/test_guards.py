"""What stands before the routes: ids, keys, turns, body sizes; and what the gateway says of itself."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway.app import create_app
from gateway.auth import Caller
from gateway.limits import Gate, body_limit
from gateway.settings import GatewaySettings
from pixelgate_common.errors import Overloaded, Unauthorized
from pydantic import ValidationError
from starlette.datastructures import Headers

OPENAPI = Path(__file__).parents[1] / "openapi.json"


async def test_the_request_id_travels_through_every_service_and_back(gateway: Any) -> None:
    answer = await gateway.client.get("/v1/search", params={"q": "a"}, headers={"X-Request-ID": "my-id.1"})
    assert answer.headers["x-request-id"] == "my-id.1"
    assert gateway.storage.request_ids == ["my-id.1"]
    assert gateway.embed.request_ids == ["my-id.1"]


async def test_an_id_that_is_no_id_is_replaced(gateway: Any) -> None:
    answer = await gateway.client.get("/v1/stages", headers={"X-Request-ID": "a b"})
    made = answer.headers["x-request-id"]
    assert made != "a b"
    assert gateway.storage.request_ids == [made]


async def test_the_service_token_goes_inwards_and_is_not_asked_of_clients(start: Any) -> None:
    async with start(service_token="0123456789abcdef") as gateway:
        assert (await gateway.client.get("/v1/stages")).status_code == 200
        assert gateway.storage.request_headers[-1]["x-pixelgate-service-token"] == "0123456789abcdef"


class OneKey:
    """An authenticator that knows one key."""

    async def authenticate(self, method: str, path: str, headers: Headers) -> Caller:
        if headers.get("authorization") != "Bearer right":
            raise Unauthorized("This key is not known.")
        return Caller("somebody", frozenset({"read"}))


async def test_without_a_key_the_answer_is_401_before_a_byte_of_the_body_is_read(start: Any) -> None:
    async with start(authenticator=OneKey()) as gateway:
        read = 0

        async def body() -> Any:
            nonlocal read
            read += 1
            yield b"x"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await gateway.client.post("/v1/images", content=body(), headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"], read) == (401, "Bearer", 0)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        with_key = await gateway.client.get("/v1/stages", headers={"Authorization": "Bearer right"})
        assert with_key.status_code == 200
        assert (await gateway.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content_type", "limit"),
    [
        ("POST", "/v1/images", "multipart/form-data; boundary=x", 256 * 1024 * 1024),
        ("POST", "/v1/images/", "multipart/form-data; boundary=x", 256 * 1024 * 1024),
        ("POST", "/v1/images", "application/json", 1024 * 1024),
        ("POST", "/v1/search/by-image", "multipart/form-data; boundary=x", 26 * 1024 * 1024),
        ("POST", "/v1/search", "application/json", 16 * 1024 * 1024),
        ("POST", "/v1/embeddings", "application/json", 16 * 1024 * 1024),
        ("POST", "/v1/caption", "multipart/form-data; boundary=x", 26 * 1024 * 1024),
        ("POST", "/v1/objects", "multipart/form-data; boundary=x", 26 * 1024 * 1024),
        ("POST", "/v1/palette", "multipart/form-data; boundary=x", 26 * 1024 * 1024),
        ("POST", "/v1/cutout", "multipart/form-data; boundary=x", 26 * 1024 * 1024),
        ("POST", "/v1/cutout", "application/json", 1024 * 1024),
        ("POST", "/v1/blend", "multipart/form-data; boundary=x", 76 * 1024 * 1024),
        ("POST", "/v1/blend", "application/json", 1024 * 1024),
        ("POST", "/v1/collage", "application/json", 16 * 1024 * 1024),
        ("POST", "/v1/duplicates/decisions", "application/json", 1024 * 1024),
        ("PATCH", "/v1/images/1", "application/json", 1024 * 1024),
        ("POST", "/v1/stages/clip/pause", "", 1024 * 1024),
        ("GET", "/v1/images", "", 64 * 1024),
    ],
)
def test_each_route_has_its_body_limit(method: str, path: str, content_type: str, limit: int) -> None:
    scope = {"method": method, "path": path, "headers": [(b"content-type", content_type.encode())]}
    assert body_limit(GatewaySettings())(scope) == limit


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/by-image", "/v1/embeddings", "/v1/caption", "/v1/collage"])
async def test_a_30_mb_body_is_413_where_one_picture_is_meant(gateway: Any, path: str) -> None:
    answer = await gateway.client.post(path, content=b"x" * 30_000_000)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


class TestGate:
    async def test_so_many_run_so_many_wait_and_the_rest_is_refused(self) -> None:
        gate = Gate("tests", running=2, waiting=3, timeout_s=10)
        inside, go = 0, asyncio.Event()

        async def one() -> None:
            nonlocal inside
            async with gate.turn():
                inside += 1
                await go.wait()

        tasks = [asyncio.create_task(one()) for _ in range(6)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inside == 2
        (refused,) = [task for task in tasks if task.done()]
        with pytest.raises(Overloaded) as caught:
            refused.result()
        assert caught.value.retry_after_s is not None
        go.set()
        await asyncio.gather(*(task for task in tasks if task is not refused))
        assert inside == 5

    async def test_a_wait_that_takes_too_long_ends(self) -> None:
        gate = Gate("tests", running=1, waiting=1, timeout_s=0.01)
        async with gate.turn():
            with pytest.raises(Overloaded):
                async with gate.turn():
                    pytest.fail("two at a time")
        async with gate.turn():
            pass


async def test_too_many_uploads_are_503_with_retry_after_before_their_body_is_read(start: Any) -> None:
    async with start(uploads_running=1, uploads_waiting=1) as gateway:
        go, read = asyncio.Event(), 0

        async def slow() -> Any:
            nonlocal read
            read += 1
            await go.wait()
            yield b"--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}

        async def upload() -> httpx.Response:
            return await gateway.client.post("/v1/images", content=slow(), headers=headers)  # type: ignore[no-any-return]

        first, second = asyncio.create_task(upload()), asyncio.create_task(upload())
        while read < 1:
            await asyncio.sleep(0)
        refused = await upload()
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert int(refused.headers["retry-after"]) >= 1
        assert read == 1
        assert (await gateway.client.get("/v1/stages")).status_code == 200  # other work has gates of its own
        go.set()
        assert {(await first).status_code, (await second).status_code} == {422}


async def test_memory_does_not_grow_with_the_body(start: Any) -> None:
    async with start(max_upload_mb=1) as gateway:
        part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        chunk = b"\0" * 65536

        async def body(megabytes: int) -> Any:
            for _ in range(4):
                yield part
                for _ in range(megabytes * 4):
                    yield chunk
                yield b"\r\n"
            yield b"--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        await gateway.client.post("/v1/images", content=body(2), headers=headers)
        tracemalloc.start()
        try:
            answer = await gateway.client.post("/v1/images", content=body(40), headers=headers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answer.status_code == 422
        assert {outcome["problem"]["status"] for outcome in answer.json()["outcomes"]} == {413}
        assert peak < 4 * 1024 * 1024  # of 160 MB sent


async def test_readyz_names_every_dependency(gateway: Any) -> None:
    answer = await gateway.client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["parts"]["embed"]["detail"] == {
        "set": "fake",
        "models": {"clip": "fake-clip/1", "resnet": "fake-resnet/1"},
    }
    gateway.inner.to_storage.down = True
    answer = await gateway.client.get("/readyz")
    assert answer.status_code == 503
    parts = answer.json()["parts"]
    assert (parts["storage"]["ready"], parts["embed"]["ready"]) == (False, True)
    assert (await gateway.client.get("/healthz")).json() == {"status": "alive"}


async def test_the_page_about_the_api_loads_nothing_from_outside(gateway: Any) -> None:
    page = await gateway.client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (await gateway.client.get("/openapi.json")).json()["info"]["title"] == "Pixelgate"


async def test_metrics_count_routes_and_not_paths(gateway: Any) -> None:
    for image_id in (901, 902):
        await gateway.client.get(f"/v1/images/{image_id}")
    text = (await gateway.client.get("/metrics")).text
    assert 'route="/v1/images/{image_id}"' in text
    assert "images/901" not in text


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing"])
async def test_an_unknown_path_is_a_problem(gateway: Any, path: str) -> None:
    answer = await gateway.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_method_that_is_not_there_is_405(gateway: Any) -> None:
    assert (await gateway.client.put("/v1/images", json={})).status_code == 405


def test_settings_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELGATE_PORT", "9000")
    monkeypatch.setenv("PIXELGATE_FETCH_ALLOW", "10.0.0.0/8, fd00::/8")
    monkeypatch.setenv("PIXELGATE_STORAGE_URL", "http://storage:1")
    monkeypatch.setenv("PIXELGATE_MAX_UPLOAD_MB", "7")
    settings = GatewaySettings()
    assert (settings.port, settings.fetch_limits.allow_networks) == (9000, ("10.0.0.0/8", "fd00::/8"))
    assert (str(settings.storage_url), settings.fetch_limits.max_bytes) == ("http://storage:1/", 7 * 1024 * 1024)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIXELGATE_FETCH_ALLOW", "10.0.0.0/33"),
        ("PIXELGATE_STORAGE_URL", "storage"),
        ("PIXELGATE_MAX_FILES", "0"),
        ("PIXELGATE_SERVICE_TOKEN", "changeme"),
    ],
)
def test_settings_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        GatewaySettings()


def test_openapi_is_the_committed_one() -> None:
    now = create_app(GatewaySettings()).openapi()
    assert json.loads(OPENAPI.read_text()) == json.loads(json.dumps(now)), (
        "the public API changed: look at the difference, then write it with `python -m gateway.openapi`"
    )
