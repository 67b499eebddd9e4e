import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request, UploadFile
from pixelgate_common.logs import configure_logs, current_request_id
from pixelgate_common.service import build_app
from pixelgate_common.settings import ServiceSettings
from starlette.types import Scope

LIMIT = 1000


class Settings(ServiceSettings):
    port: int = 1


def make_app(token: str | None = None) -> FastAPI:
    from contextlib import asynccontextmanager

    from fastapi import APIRouter
    from pixelgate_common.health import health_router

    router = APIRouter()

    @router.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @router.post("/form")
    async def form(file: UploadFile) -> int:
        return len(await file.read())

    @router.post("/json")
    async def take(body: dict[str, str]) -> int:
        return len(body)

    @router.get("/id")
    async def request_id() -> str | None:
        return current_request_id()

    @router.get("/things/{thing_id}")
    async def thing(thing_id: int) -> int:
        return thing_id

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    def limit(scope: Scope) -> int:
        return LIMIT

    return build_app(
        service="test",
        description="",
        settings=Settings(service_token=token),
        lifespan=lifespan,
        routers=[router, health_router({})],
        body_limit=limit,
    )


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


class Endless:
    """A body without a declared length that counts how much of it was read."""

    def __init__(self, total: int) -> None:
        self.total, self.sent = total, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < self.total:
            self.sent += 100
            yield b"x" * 100


@pytest.mark.parametrize("path", ["/raw", "/json"])
async def test_a_body_over_the_cap_is_refused_by_its_declared_length(path: str) -> None:
    answer = await client_of(make_app()).post(path, content=b"x" * (LIMIT + 1))
    assert answer.status_code == 413
    assert answer.json()["type"].endswith("body_too_large")


@pytest.mark.parametrize("path", ["/raw", "/json"])
async def test_a_body_without_length_is_cut_off_at_the_cap(path: str) -> None:
    body = Endless(1_000_000)
    answer = await client_of(make_app()).post(path, content=body)
    assert answer.status_code == 413
    assert body.sent <= LIMIT + 200


async def test_a_form_over_the_cap_without_length_is_413_not_400() -> None:
    async def form() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(50):
            yield b"x" * 100

    answer = await client_of(make_app()).post(
        "/form", content=form(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413


async def test_a_body_at_the_cap_is_taken() -> None:
    assert (await client_of(make_app()).post("/raw", content=b"x" * LIMIT)).json() == LIMIT


async def test_without_the_token_nothing_is_answered_and_no_body_is_read() -> None:
    body = Endless(1_000_000)
    client = client_of(make_app(token="s3cret-of-the-house"))
    assert (await client.post("/raw", content=body)).status_code == 401
    assert body.sent == 0
    assert (await client.get("/id", headers={"X-Pixelgate-Service-Token": "wrong"})).status_code == 401


async def test_the_right_token_opens_and_health_needs_none() -> None:
    client = client_of(make_app(token="s3cret-of-the-house"))
    assert (await client.get("/id", headers={"X-Pixelgate-Service-Token": "s3cret-of-the-house"})).status_code == 200
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await client.get(path)).status_code == 200


async def test_a_request_id_travels_and_a_malformed_one_is_replaced() -> None:
    client = client_of(make_app())
    answer = await client.get("/id", headers={"X-Request-ID": "abc-1"})
    assert (answer.json(), answer.headers["x-request-id"]) == ("abc-1", "abc-1")
    answer = await client.get("/id", headers={"X-Request-ID": "a b\tc"})
    assert answer.json() == answer.headers["x-request-id"] != "a b\tc"


async def test_metrics_count_by_route_not_by_path() -> None:
    client = client_of(make_app())
    for thing in range(3):
        await client.get(f"/things/{thing}")
    text = (await client.get("/metrics")).text
    assert 'route="/things/{thing_id}"' in text
    assert "/things/1" not in text


def test_a_placeholder_is_no_secret() -> None:
    with pytest.raises(ValueError, match="placeholder"):
        Settings(service_token="changeme")


def test_each_log_line_is_one_json_object_with_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logs("test-service")
        structlog.get_logger("here").info("hello", n=1)
        logging.getLogger("a.library").warning("from a library")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        structlog.reset_defaults()
    assert [(line["event"], line["service"]) for line in lines] == [
        ("hello", "test-service"),
        ("from a library", "test-service"),
    ]
