"""One family of errors, answered as RFC 9457 problem details by one handler.

A class carries its HTTP status, its stable code and its title; an instance carries the sentence for the person who
asked. Anything else that is raised is logged whole and answered without detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pixelgate_common.contracts.problems import FieldProblem, Problem
from pixelgate_common.logs import current_request_id

PROBLEM_MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger(__name__)


class PixelgateError(Exception):
    """The base of every error that Pixelgate raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong inside"

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        errors: Sequence[FieldProblem] = (),
    ) -> None:
        """Say what is wrong (`detail`), in which `field` of the request, and after how long a retry makes sense."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.errors = list(errors) or ([FieldProblem(field=field, message=detail)] if field else [])

    def to_problem(self, instance: str | None = None) -> Problem:
        """Return this error as problem details, with the id of the request being served."""
        return Problem(
            type=f"urn:pixelgate:problem:{self.code}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            instance=instance,
            request_id=current_request_id(),
            errors=self.errors,
        )


class InvalidRequest(PixelgateError):
    """The request can be read but asks for something that cannot be."""

    status, code, title = 422, "invalid_request", "The request is not valid"


class NotFound(PixelgateError):
    """Nothing has this name."""

    status, code, title = 404, "not_found", "Not found"


class Conflict(PixelgateError):
    """The request does not fit the present state."""

    status, code, title = 409, "conflict", "Conflict"


class FingerprintMismatch(Conflict):
    """Results of two different models were about to be compared."""

    code, title = "fingerprint_mismatch", "Results of different models cannot be compared"


class BodyTooLarge(PixelgateError):
    """The request's body is larger than this route takes."""

    status, code, title = 413, "body_too_large", "The request's body is too large"


class Unauthorized(PixelgateError):
    """No valid key or token came with the request."""

    status, code, title = 401, "unauthorized", "A valid key is needed"


class Overloaded(PixelgateError):
    """The service has as much work as it may take; a later try will be answered."""

    status, code, title = 503, "overloaded", "Too much work at the moment"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        """Say what is full, and after how many seconds another try makes sense."""
        super().__init__(detail, retry_after_s=retry_after_s)


class Unavailable(PixelgateError):
    """Something that the answer needs is not there at the moment."""

    status, code, title = 503, "unavailable", "A part that is needed is not available"

    def __init__(self, detail: str, *, retry_after_s: float = 2.0) -> None:
        """Say which part is missing, and after how many seconds another try makes sense."""
        super().__init__(detail, retry_after_s=retry_after_s)


class OutOfSpace(PixelgateError):
    """The disk that keeps the data is full."""

    status, code, title = 507, "out_of_space", "The disk is full"


class UpstreamProblem(PixelgateError):
    """Another Pixelgate service refused; its problem is passed on as it is."""

    def __init__(self, problem: Problem, *, retry_after_s: float | None = None) -> None:
        """Wrap the `problem` that the other service answered with."""
        super().__init__(problem.detail, retry_after_s=retry_after_s, errors=problem.errors)
        self.problem = problem

    def to_problem(self, instance: str | None = None) -> Problem:
        """Return the other service's problem under this request's id and path."""
        return self.problem.model_copy(update={"instance": instance, "request_id": current_request_id()})


def problem_response(error: PixelgateError, instance: str | None = None) -> JSONResponse:
    """Return the RFC 9457 answer for `error`, with `Retry-After` (whole seconds, rounded up) where it has one."""
    problem = error.to_problem(instance)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, -int(-error.retry_after_s // 1)))
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        problem.model_dump(mode="json", exclude_none=True),
        status_code=problem.status,
        headers=headers,
        media_type=PROBLEM_MEDIA_TYPE,
    )


def install_error_handlers(app: FastAPI) -> None:
    """Make `app` answer every error, known or not, as problem details."""

    async def on_known(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PixelgateError)
        return problem_response(error, request.url.path)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fields = field_problems(error.errors())
        detail = "; ".join(f"{f.field}: {f.message}" for f in fields[:5]) or "The request is not valid."
        return problem_response(InvalidRequest(detail, errors=fields), request.url.path)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        # FastAPI turns whatever is raised while a body is read into a bare 400; the cause says what it really was.
        if isinstance(error.__cause__, PixelgateError):
            return problem_response(error.__cause__, request.url.path)
        problem = Problem(
            type="about:blank",
            title=_HTTP_TITLES.get(error.status_code, "The request cannot be served"),
            status=error.status_code,
            detail=str(error.detail),
            instance=request.url.path,
            request_id=current_request_id(),
        )
        return JSONResponse(
            problem.model_dump(mode="json", exclude_none=True),
            status_code=error.status_code,
            headers=dict(error.headers or {}),
            media_type=PROBLEM_MEDIA_TYPE,
        )

    async def on_unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("unhandled_error", path=request.url.path, exc_info=error)
        return problem_response(
            PixelgateError("An unexpected error was logged under this request id."), request.url.path
        )

    app.add_exception_handler(PixelgateError, on_known)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unknown)


def field_problems(errors: Sequence[Any]) -> list[FieldProblem]:
    """Return pydantic's error list as one problem per field, without the values that were sent."""
    found = []
    for error in errors:
        location = [str(part) for part in error.get("loc", ())]
        if location and location[0] in ("body", "query", "path", "header", "cookie", "form"):
            location = location[1:]
        # Names of a union's branches are pydantic's, not the client's.
        location = [part for part in location if not part.startswith("filter:")]
        found.append(FieldProblem(field=".".join(location) or "body", message=str(error.get("msg", "not valid"))))
    return found


_HTTP_TITLES = {
    400: "The request cannot be read",
    404: "Not found",
    405: "This method is not allowed here",
    413: "The request's body is too large",
    415: "This media type is not taken here",
}
