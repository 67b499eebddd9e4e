"""Cursors: where the next page begins, bound to the question that was asked; checked when they come back."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any, TypeVar

from pixelgate_common.errors import InvalidRequest
from pydantic import BaseModel, ValidationError

Place = TypeVar("Place", bound=BaseModel)
NOT_PART_OF_THE_QUESTION = frozenset({"cursor", "limit", "facets"})


class InvalidCursor(InvalidRequest):
    """The cursor cannot be read, or belongs to another question."""

    code, title = "invalid_cursor", "The cursor is not valid"


def encode_cursor(question: BaseModel, place: BaseModel) -> str:
    """Return the cursor for going on with `question` at `place`."""
    body = [_digest(question), place.model_dump(mode="json")]
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode("ascii")


def decode_cursor(question: BaseModel, cursor: str, kind: type[Place]) -> Place:
    """Return the place that `cursor` names; InvalidCursor when it is none, or one of another question."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        body: Any = json.loads(raw)
        digest, place = body
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidCursor("The cursor is not one of ours.", field="cursor") from error
    if digest != _digest(question):
        raise InvalidCursor("The cursor belongs to another query; begin again without one.", field="cursor")
    try:
        return kind.model_validate(place)
    except ValidationError as error:
        raise InvalidCursor("The cursor is not one of ours.", field="cursor") from error


def _digest(question: BaseModel) -> str:
    asked = question.model_dump(mode="json", by_alias=True, exclude=set(NOT_PART_OF_THE_QUESTION))
    text = type(question).__name__ + json.dumps(asked, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
