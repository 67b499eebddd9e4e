"""Problem details (RFC 9457), the shape of every error of the native API."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str = Field(description="Dotted path of the field, as the client named it.")
    message: str


class Problem(BaseModel):
    """One error, for a person (`title`, `detail`) and for a program (`type`, `status`, `errors`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    request_id: str | None = None
    errors: list[FieldProblem] = []

    @property
    def code(self) -> str:
        """The last part of `type`, e.g. `not_an_image`."""
        return self.type.rsplit(":", 1)[-1]
