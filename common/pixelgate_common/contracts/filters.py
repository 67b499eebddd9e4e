"""Filters over stored pictures: AND, OR and NOT over comparisons of one field with values.

`{"all": [{"field": "width", "gte": 800}, {"any": [{"field": "tags", "eq": "dog"},
{"not": {"field": "format", "eq": "gif"}}]}]}`
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Scalar = bool | int | float | str
Kind = Literal["text", "number", "time", "tags"]

RECORD_FIELDS: dict[str, Kind] = {
    "id": "number",
    "sha256": "text",
    "filename": "text",
    "media_type": "text",
    "format": "text",
    "width": "number",
    "height": "number",
    "bytes": "number",
    "created_at": "time",
    "captured_at": "time",
    "source_url": "text",
    "page_url": "text",
    "page_title": "text",
    "alt_text": "text",
    "caption": "text",
    "caption_by": "text",
    "tags": "tags",
}
"""The record's own fields that can be filtered, and what kind of value each holds."""

FREE_FIELDS = ("attributes", "exif", "objects")
"""Fields with free names below them: `attributes.<name>`, `exif.<name>`, and `objects.<label>` (a count)."""

MAX_DEPTH = 8
MAX_LEAVES = 64
_FREE_NAME = re.compile(r"[^\x00]{1,100}")
_ORDERED = ("gt", "gte", "lt", "lte")


class Leaf(BaseModel):
    """One comparison of one field; a picture that lacks the field fits none but `exists: false`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    field: str
    eq: Scalar | None = None
    in_: list[Scalar] | None = Field(None, alias="in", min_length=1, max_length=1000)
    gt: Scalar | None = None
    gte: Scalar | None = None
    lt: Scalar | None = None
    lte: Scalar | None = None
    prefix: str | None = Field(None, min_length=1, max_length=500)
    exists: bool | None = None

    @property
    def comparisons(self) -> dict[str, Any]:
        """The comparisons that were given, by name (`in` without its underscore)."""
        names = ("eq", "in_", "gt", "gte", "lt", "lte", "prefix", "exists")
        return {name.rstrip("_"): getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def kind(self) -> Kind | Literal["free"]:
        """What the field holds; `free` where values of any type stand under free names."""
        if self.field in RECORD_FIELDS:
            return RECORD_FIELDS[self.field]
        return "number" if self.field.startswith("objects.") else "free"

    @model_validator(mode="after")
    def _check(self) -> Self:
        group, _, name = self.field.partition(".")
        if self.field not in RECORD_FIELDS and not (group in FREE_FIELDS and _FREE_NAME.fullmatch(name)):
            raise ValueError(f"there is no field {self.field!r} to filter by")
        given = self.comparisons
        ordered = [name for name in given if name in _ORDERED]
        if not given:
            raise ValueError(f"{self.field}: one of eq, in, gt, gte, lt, lte, prefix, exists is needed")
        if len(given) > 1 and len(ordered) != len(given):
            raise ValueError(f"{self.field}: only gt, gte, lt and lte can stand together")
        values = [value for name in ("eq", *_ORDERED) if (value := given.get(name)) is not None] + list(self.in_ or ())
        kind = self.kind
        if kind == "tags" and ordered:
            raise ValueError("tags: take eq, in, prefix or exists")
        if kind in ("number", "time") and self.prefix is not None:
            raise ValueError(f"{self.field}: prefix is for text")
        for value in values:
            if kind == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{self.field}: a number is needed, not {value!r}")
            if kind in ("text", "tags") and not isinstance(value, str):
                raise ValueError(f"{self.field}: text is needed, not {value!r}")
            if kind == "time":
                parse_time(self.field, value)
            if isinstance(value, str) and ("\x00" in value or len(value) > 1000):
                raise ValueError(f"{self.field}: text of at most 1,000 characters without NUL is needed")
        return self


def parse_time(field: str, value: object) -> datetime:
    """Return the ISO 8601 time `value` (UTC where it has no zone); ValueError when it is not one."""
    if not isinstance(value, str):
        raise ValueError(f"{field}: an ISO 8601 time is needed, not {value!r}")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{field}: an ISO 8601 time is needed, not {value!r}") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class All(BaseModel):
    """Every part holds."""

    model_config = ConfigDict(extra="forbid")
    all: list[Filter] = Field(min_length=1, max_length=MAX_LEAVES)


class Any_(BaseModel):
    """At least one part holds."""

    model_config = ConfigDict(extra="forbid")
    any: list[Filter] = Field(min_length=1, max_length=MAX_LEAVES)


class Not(BaseModel):
    """The part does not hold (a picture that lacks the part's field is included)."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    not_: Filter = Field(alias="not")


def _which(value: Any) -> str:
    if isinstance(value, All) or (isinstance(value, dict) and "all" in value):
        return "filter:all"
    if isinstance(value, Any_) or (isinstance(value, dict) and "any" in value):
        return "filter:any"
    if isinstance(value, Not) or (isinstance(value, dict) and "not" in value):
        return "filter:not"
    return "filter:leaf"


Filter = Annotated[
    Annotated[All, Tag("filter:all")]
    | Annotated[Any_, Tag("filter:any")]
    | Annotated[Not, Tag("filter:not")]
    | Annotated[Leaf, Tag("filter:leaf")],
    Discriminator(_which),
]
"""A filter tree; see the module's docstring."""

All.model_rebuild()
Any_.model_rebuild()
Not.model_rebuild()


def leaves(tree: All | Any_ | Not | Leaf, depth: int = 0) -> list[Leaf]:
    """Return the tree's comparisons; ValueError when it is nested deeper than MAX_DEPTH or has over MAX_LEAVES."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a filter may be nested at most {MAX_DEPTH} deep")
    match tree:
        case Leaf():
            found = [tree]
        case All():
            found = [leaf for part in tree.all for leaf in leaves(part, depth + 1)]
        case Any_():
            found = [leaf for part in tree.any for leaf in leaves(part, depth + 1)]
        case Not():
            found = leaves(tree.not_, depth + 1)
    if len(found) > MAX_LEAVES:
        raise ValueError(f"a filter may have at most {MAX_LEAVES} comparisons")
    return found
