"""Errors on their way to the client: which field of the request they are about, and with which status they go out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


_ABOUT_WHAT_WAS_SENT = (413, 415, 422)


@contextmanager
def renamed(fields: Mapping[str, str]) -> Iterator[None]:
    """Name the client's own fields in what an inner service refuses: `fields` maps its names to the client's.

    A refusal of what was sent that names no field is about the first of them.
    """
    try:
        yield
    except PixelgateError as error:
        if status_of(error) in _ABOUT_WHAT_WAS_SENT:
            if not error.errors:
                put_field(error, next(iter(fields.values())))
            error.errors = [one.model_copy(update={"field": _named(one.field, fields)}) for one in error.errors]
            if isinstance(error, UpstreamProblem):
                error.problem = error.problem.model_copy(update={"errors": error.errors})
        raise


def _named(field: str, fields: Mapping[str, str]) -> str:
    first, dot, rest = field.partition(".")
    # Of several files of one name the place is the inner request's and says nothing to the client.
    return field if first not in fields else fields[first] + (dot + rest if not rest.isdecimal() else "")
