"""One call to another service: what is tried again, what is passed on, and what travels with it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from gateway.clients.embed import EmbedClient
from gateway.clients.inner import BadAnswer, ConnectionCut, NotAccepted, NotReached, Patience, TimedOut
from gateway.clients.storage import StorageClient
from gateway.problems import about, status_of
from pixelgate_common.errors import Overloaded, PixelgateError, Unavailable, UpstreamProblem
from pixelgate_common.logs import begin_request
from pydantic import SecretStr

MODELS = {"set": "fake", "models": []}


def client(answer: Any, *, token: SecretStr | None = None, retry_s: float = 0.3) -> tuple[EmbedClient, list[Any]]:
    """Return a client whose requests `answer` (a response, an error, or a list of them) answers, and those requests."""
    seen: list[httpx.Request] = []
    answers = list(answer) if isinstance(answer, list) else None

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        now = answers.pop(0) if answers is not None else answer
        if isinstance(now, Exception):
            raise now
        return now  # type: ignore[no-any-return]

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://inner")
    return EmbedClient(http, token=token, retry_s=retry_s), seen


async def test_request_id_and_token_travel_with_every_call() -> None:
    request_id = begin_request("abc-1")
    embed, seen = client(httpx.Response(200, json=MODELS), token=SecretStr("s3cr3t-of-the-house"))
    assert (await embed.models()).set == "fake"
    assert seen[0].headers["x-request-id"] == request_id == "abc-1"
    assert seen[0].headers["x-pixelgate-service-token"] == "s3cr3t-of-the-house"


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        pytest.param(httpx.ConnectError("no"), NotReached, 503, id="refused"),
        pytest.param(httpx.ConnectTimeout("no"), NotReached, 503, id="connect-timeout"),
        pytest.param(httpx.ReadError("no"), ConnectionCut, 503, id="cut"),
        pytest.param(httpx.RemoteProtocolError("no"), ConnectionCut, 503, id="closed"),
        pytest.param(httpx.ReadTimeout("no"), TimedOut, 503, id="no-answer"),
        pytest.param(httpx.PoolTimeout("no"), Overloaded, 503, id="pool-full"),
        pytest.param(httpx.Response(503, text="starting"), Unavailable, 503, id="503-without-problem"),
        pytest.param(httpx.Response(500, text="<html>"), BadAnswer, 502, id="500-without-problem"),
        pytest.param(httpx.Response(401, json={}), NotAccepted, 502, id="token-refused"),
        pytest.param(httpx.Response(200, json={"set": 1}), BadAnswer, 502, id="other-shape"),
        pytest.param(httpx.Response(200, text="no json"), BadAnswer, 502, id="no-json"),
    ],
)
async def test_what_goes_wrong_becomes_one_of_ours(answer: Any, kind: type[PixelgateError], status: int) -> None:
    embed, _ = client(answer)
    with pytest.raises(kind) as caught:
        await embed.models()
    assert status_of(caught.value) == status
    if status == 503:
        assert (caught.value.retry_after_s or 0) > 0


async def test_a_problem_is_passed_on_with_its_retry_after() -> None:
    problem = {"type": "urn:pixelgate:problem:overloaded", "title": "Full", "status": 429, "detail": "Later."}
    embed, seen = client(httpx.Response(429, json=problem, headers={"Retry-After": "7"}))
    with pytest.raises(UpstreamProblem) as caught:
        await embed.models()
    assert (caught.value.problem.status, caught.value.problem.code, caught.value.retry_after_s) == (
        429,
        "overloaded",
        7,
    )
    assert len(seen) == 1


async def test_a_broken_connection_is_tried_again_and_a_slow_answer_is_not() -> None:
    embed, seen = client([httpx.ReadError("cut"), httpx.ConnectError("no"), httpx.Response(200, json=MODELS)])
    await embed.models()
    assert len(seen) == 3
    embed, seen = client(httpx.ReadTimeout("slow"))
    with pytest.raises(TimedOut):
        await embed.models()
    assert len(seen) == 1


async def test_a_pause_between_tries_is_never_longer_than_the_patience() -> None:
    embed, seen = client(httpx.ConnectError("no"), retry_s=0)
    with pytest.raises(NotReached):
        await embed.models()
    assert len(seen) == 1


async def test_a_deletion_is_not_tried_again() -> None:
    _, seen = client(httpx.ReadError("cut"))
    embed, seen = client(httpx.ReadError("cut"))
    storage = StorageClient(embed._http)
    with pytest.raises(ConnectionCut):
        await storage.delete(1)
    assert len(seen) == 1


async def test_files_that_cannot_be_read_are_a_bad_answer() -> None:
    embed, _ = client(httpx.Response(200, content=b'[["1", 100]]\nshort'))
    with pytest.raises(BadAnswer):
        await StorageClient(embed._http).files([1])


def test_patience_begins_with_the_first_failure_and_anew_after_a_success() -> None:
    patience = Patience(10)
    assert 9.9 < patience.left_s() <= 10
    patience.worked()
    assert 9.9 < patience.left_s() <= 10
    assert Patience(0).left_s() <= 0


def test_what_is_not_the_clients_doing_names_no_field() -> None:
    with pytest.raises(Unavailable) as caught, about("terms.0"):
        raise Unavailable("gone")
    assert caught.value.errors == []
