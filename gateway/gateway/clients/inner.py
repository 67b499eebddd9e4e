"""One call to another service: headers, timeouts, retries, and what its refusal means here."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, TypeVar

import httpx
import structlog
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import Overloaded, PixelgateError, Unavailable, UpstreamProblem
from pixelgate_common.logs import REQUEST_ID_HEADER, current_request_id
from pixelgate_common.middleware import SERVICE_TOKEN_HEADER
from pydantic import BaseModel, SecretStr, ValidationError

from gateway.settings import InnerUrls

log = structlog.get_logger(__name__)
Shape = TypeVar("Shape", bound=BaseModel)
Body = Callable[[], AsyncIterator[bytes]]
"""Gives the request's body from its beginning, each time it is called: a retry sends it again."""
_LONGEST_PAUSE_S = 1.0


class NotReached(Unavailable):
    """Another service could not be reached, so nothing was asked of it."""


class ConnectionCut(Unavailable):
    """The connection to another service broke after the question and before the answer."""


class TimedOut(Unavailable):
    """Another service was asked and did not answer in time."""

    code, title = "timed_out", "A part that is needed did not answer in time"


class BadAnswer(PixelgateError):
    """Another service answered with something that cannot be understood."""

    status, code, title = 502, "bad_answer", "A part that is needed gave an answer that cannot be used"


class NotAccepted(BadAnswer):
    """Another service did not accept this one's service token."""


class Patience:
    """How long failures in a row are borne. Calls that share one give up together, not one after the other."""

    def __init__(self, for_s: float) -> None:
        """Bear failures for `for_s` seconds from the first on."""
        self._for_s = for_s
        self._since: float | None = None

    def left_s(self) -> float:
        """Return how many seconds another try may still wait, after a failure just now."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return self._since + self._for_s - now

    def worked(self) -> None:
        """Say that a call was answered."""
        self._since = None


class InnerClient:
    """What the clients of all services have in common."""

    service: ClassVar[str]

    def __init__(self, http: httpx.AsyncClient, *, token: SecretStr | None = None, retry_s: float = 1.0) -> None:
        """`http` has the service's base URL and timeouts; repeatable calls are tried again for `retry_s`."""
        self._http, self._token, self._retry_s = http, token, retry_s

    async def ready(self) -> Any:
        """Return what the service's `/readyz` shows; raises when it is not ready."""
        return (await self._send("GET", "/readyz", patience=Patience(0))).json()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        patience: Patience | None = None,
        retry_busy: bool = False,
        body: Body | None = None,
        stream: bool = False,
        accept: frozenset[int] = frozenset(),
        read_timeout_s: float | None = None,
        **request: Any,
    ) -> httpx.Response:
        """Send a request that may be repeated without harm, and return its answer (below 400, or in `accept`).

        Tried again while `patience` lasts, when the service cannot be reached or the connection breaks; with
        `retry_busy` also when it answers 503. Raises `Unavailable` and its kin, or the service's own problem.
        """
        patience = patience or Patience(self._retry_s)
        pause_s = 0.05
        while True:
            try:
                answer = await self._try(method, path, body, stream, read_timeout_s, request)
                if answer.status_code < 400 or answer.status_code in accept:
                    patience.worked()
                    return answer
                error = await self._refusal(answer)
            except (NotReached, ConnectionCut) as unreached:
                error = unreached
            again = isinstance(error, NotReached | ConnectionCut) or (retry_busy and _status(error) == 503)
            if not again:
                patience.worked()
                raise error
            wait_s = max(pause_s * random.uniform(0.5, 1.0), min(error.retry_after_s or 0.0, _LONGEST_PAUSE_S))
            if isinstance(error, NotReached | ConnectionCut):
                wait_s = pause_s * random.uniform(0.5, 1.0)
            if wait_s > patience.left_s():
                raise error
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _try(
        self,
        method: str,
        path: str,
        body: Body | None,
        stream: bool,
        read_timeout_s: float | None,
        request: dict[str, Any],
    ) -> httpx.Response:
        headers = dict(request.get("headers") or {})
        if (request_id := current_request_id()) is not None:
            headers[REQUEST_ID_HEADER] = request_id
        if self._token is not None:
            headers[SERVICE_TOKEN_HEADER] = self._token.get_secret_value()
        asked: dict[str, Any] = {**request, "headers": headers}
        if body is not None:
            asked["content"] = body()
        if read_timeout_s is not None:
            usual = self._http.timeout
            asked["timeout"] = httpx.Timeout(
                connect=usual.connect, read=read_timeout_s, write=read_timeout_s, pool=usual.pool
            )
        try:
            built = self._http.build_request(method, path, **asked)
            return await self._http.send(built, stream=stream)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotReached(f"{self.service} cannot be reached.") from error
        except httpx.PoolTimeout as error:
            raise Overloaded(f"Too many calls to {self.service} are under way.") from error
        except httpx.TimeoutException as error:
            raise TimedOut(f"{self.service} did not answer in time.") from error
        except httpx.TransportError as error:
            raise ConnectionCut(f"The connection to {self.service} broke.") from error

    async def _refusal(self, answer: httpx.Response) -> PixelgateError:
        try:
            await answer.aread()
        except httpx.HTTPError as error:
            log.warning("refusal_unreadable", to=self.service, status=answer.status_code, reason=str(error))
            return ConnectionCut(f"The connection to {self.service} broke.")
        finally:
            await answer.aclose()
        status = answer.status_code
        if status == 401:
            log.error("inner_call_not_accepted", to=self.service)
            return NotAccepted(f"{self.service} does not accept this gateway's service token.")
        retry_after = answer.headers.get("retry-after", "")
        retry_after_s = float(retry_after) if retry_after.isdecimal() else None
        try:
            return UpstreamProblem(Problem.model_validate_json(answer.content), retry_after_s=retry_after_s)
        except ValidationError:
            if status == 503:
                return Unavailable(f"{self.service} is not ready.", retry_after_s=retry_after_s or 2.0)
            log.error("answer_is_no_problem", to=self.service, status=status, body=answer.text[:500])
            return BadAnswer(f"{self.service} answered with status {status}.")

    def _read(self, answer: httpx.Response, shape: type[Shape]) -> Shape:
        try:
            return shape.model_validate_json(answer.content)
        except ValidationError as error:
            log.error("answer_has_another_shape", to=self.service, path=answer.url.path, errors=str(error)[:2000])
            raise BadAnswer(f"{self.service} gave an answer of an unknown shape.") from error


def _status(error: PixelgateError) -> int:
    return error.problem.status if isinstance(error, UpstreamProblem) else error.status


def open_http(base_url: object, settings: InnerUrls, *, read_timeout_s: float, connections: int) -> httpx.AsyncClient:
    """Return the HTTP client for one service; it takes no proxy from the environment and follows no redirect."""
    return httpx.AsyncClient(
        base_url=str(base_url),
        timeout=httpx.Timeout(
            connect=settings.connect_timeout_s,
            read=read_timeout_s,
            write=read_timeout_s,
            pool=settings.pool_timeout_s,
        ),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections // 2),
        trust_env=False,
        follow_redirects=False,
    )
