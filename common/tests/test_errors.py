import logging

import httpx
import pytest
from fastapi import FastAPI
from pixelgate_common.contracts.problems import FieldProblem
from pixelgate_common.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    Unauthorized,
    UpstreamProblem,
    install_error_handlers,
)
from pydantic import BaseModel


class Wanted(BaseModel):
    width: int


def make_app() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/known")
    def known() -> None:
        raise NotFound("There is no image 7.")

    @app.get("/busy")
    def busy() -> None:
        raise Overloaded("The queue is full.", retry_after_s=1.2)

    @app.get("/secret")
    def secret() -> None:
        raise RuntimeError("the password is 12345")

    @app.get("/key")
    def key() -> None:
        raise Unauthorized("No key.")

    @app.post("/body")
    def body(wanted: Wanted) -> int:
        return wanted.width

    return app


@pytest.fixture
def client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=make_app(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_a_known_error_is_a_problem_with_its_status_code_and_title(client: httpx.AsyncClient) -> None:
    answer = await client.get("/known")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:pixelgate:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "There is no image 7.",
        "instance": "/known",
        "errors": [],
    }


async def test_retry_after_is_rounded_up_to_whole_seconds(client: httpx.AsyncClient) -> None:
    answer = await client.get("/busy")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_an_unknown_error_is_logged_whole_and_answered_without_detail(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/secret")
    assert answer.status_code == 500
    assert "12345" not in answer.text


async def test_an_invalid_body_names_the_field_without_repeating_the_value(client: httpx.AsyncClient) -> None:
    answer = await client.post("/body", json={"width": "hunter2"})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["width"]
    assert "hunter2" not in answer.text


async def test_an_unknown_path_is_a_problem_too(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_unauthorized_says_how_to_authenticate(client: httpx.AsyncClient) -> None:
    assert (await client.get("/key")).headers["www-authenticate"] == "Bearer"


def test_a_field_becomes_a_field_problem() -> None:
    assert InvalidRequest("too long", field="tags").to_problem().errors == [
        FieldProblem(field="tags", message="too long")
    ]


def test_an_upstream_problem_keeps_its_kind_under_this_path() -> None:
    problem = NotFound("There is no image 7.").to_problem("/inner")
    passed_on = UpstreamProblem(problem).to_problem("/outer")
    assert (passed_on.type, passed_on.status, passed_on.instance) == (problem.type, 404, "/outer")
