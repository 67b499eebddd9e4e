"""Errors on their way to the client: which field of the request they are about, and with which status they go out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pixelgate_common.contracts.problems import FieldProblem
from pixelgate_common.errors import PixelgateError, UpstreamProblem


def status_of(error: PixelgateError) -> int:
    """Return the status that `error` is answered with."""
    return error.problem.status if isinstance(error, UpstreamProblem) else error.status


def put_field(error: PixelgateError, field: str) -> None:
    """Make `error` name `field` (a dotted path, as the client wrote it) as what it is about."""
    error.errors = [FieldProblem(field=field, message=error.detail)]
    if isinstance(error, UpstreamProblem):
        error.problem = error.problem.model_copy(update={"errors": error.errors})


@contextmanager
def about(field: str) -> Iterator[None]:
    """Say of every refusal in the block that it is about `field`; what is not the client's doing stays as it is."""
    try:
        yield
    except PixelgateError as error:
        if status_of(error) < 500:
            put_field(error, field)
        raise
