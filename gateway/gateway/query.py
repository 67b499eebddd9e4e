"""What a search can ask for: weighted terms, a filter, and a page."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pixelgate_common.contracts.filters import All, Any_, Filter, Leaf, Not, leaves
from pixelgate_common.contracts.storage import Hit
from pixelgate_common.errors import InvalidRequest, field_problems
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

FilterTree = All | Any_ | Not | Leaf
Space = Literal["clip", "resnet"]
Cursor = Annotated[str, Field(min_length=1, max_length=4000)]
_FILTER: TypeAdapter[FilterTree] = TypeAdapter(Filter)


def _not_yet(value: Any) -> Any:
    raise ValueError("this version of Pixelgate does not offer it yet")


def _only_json(value: Any) -> Any:
    if value != "json":
        raise ValueError("only `json` is offered by this version of Pixelgate")
    return value


def _check_filter(tree: FilterTree | None) -> FilterTree | None:
    if tree is not None:
        leaves(tree)
    return tree


NotYet = SkipJsonSchema[Annotated[Any, BeforeValidator(_not_yet)]]
"""A field of the API's design that is refused by name until it works: silence would look like an answer."""


class Term(BaseModel):
    """One weighted part of a query: a text, a stored picture, a picture behind a URL, or a picture in base64."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")] | None = None
    image_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    image_url: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    image: Annotated[str, Field(min_length=1, description="A picture file in base64, or as a data URI.")] | None = None
    color: NotYet = None
    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False, description="Below 0: pictures unlike this.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("text", "image_id", "image_url", "image") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a term has exactly one of text, image_id, image_url and image")
        if self.weight == 0:
            raise ValueError("a weight of 0 would leave the term out: leave it out instead")
        return self


class Page(BaseModel):
    """The part of a search that says which hits are wanted, and how many."""

    model_config = ConfigDict(extra="forbid")

    space: Space = Field("clip", description="`resnet` compares pictures with pictures only.")
    filter: Annotated[Filter | None, AfterValidator(_check_filter)] = None
    limit: int = Field(24, ge=1, le=200)
    cursor: Cursor | None = None
    include_self: bool = Field(False, description="Whether pictures that the query names by `image_id` may be hits.")
    answer: Annotated[str, BeforeValidator(_only_json)] = Field("json", json_schema_extra={"enum": ["json"]})
    mode: NotYet = None
    min_relevance: NotYet = None
    collapse: NotYet = None


class Query(Page):
    """A search (`POST /v1/search`)."""

    terms: list[Term] = Field(min_length=1, max_length=100)


class PictureQuery(Page):
    """What stands beside the picture in `POST /v1/search/by-image`."""

    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)
    terms: list[Term] = Field([], max_length=100, description="Further terms, beside the picture.")
    crop: tuple[float, float, float, float] | None = Field(
        None, description="x, y, width, height of the part to search by, in the upright picture's pixels."
    )

    @model_validator(mode="after")
    def _weight_counts(self) -> Self:
        if self.weight == 0:
            raise ValueError("a weight of 0 would leave the picture out")
        return self


class Found(BaseModel):
    """A page of hits, best first, and the fingerprint of the model that the vectors came from, by space."""

    hits: list[Hit]
    next_cursor: str | None
    models: dict[str, str]


def parse_filter(text: str) -> FilterTree:
    """Return the filter that is written as JSON in a query parameter; raises `InvalidRequest` about `filter`."""
    tree = parse_json("filter", text)
    try:
        parsed = _FILTER.validate_python(tree)
        leaves(parsed)
    except ValidationError as error:
        fields = [
            found.model_copy(update={"field": "filter" if found.field == "body" else f"filter.{found.field}"})
            for found in field_problems(error.errors())
        ]
        raise InvalidRequest("; ".join(f"{f.field}: {f.message}" for f in fields[:5]), errors=fields) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(str(error) or "The filter is nested too deep.", field="filter") from error
    return parsed


def parse_picture_query(fields: list[tuple[str, str]]) -> PictureQuery:
    """Return the query that a form's text fields make; raises `InvalidRequest` naming the field."""
    given: dict[str, Any] = {}
    for name, text in fields:
        if name in given:
            raise InvalidRequest(f"{name} was sent more than once.", field=name)
        given[name] = text
    for name in ("filter", "terms"):
        if name in given:
            given[name] = parse_json(name, given[name])
    if "crop" in given:
        given["crop"] = [part.strip() for part in given["crop"].strip().strip("[]").split(",")]
    try:
        return PictureQuery.model_validate(given)
    except ValidationError as error:
        problems = field_problems(error.errors())
        raise InvalidRequest("; ".join(f"{p.field}: {p.message}" for p in problems[:5]), errors=problems) from error


def parse_json(field: str, text: str) -> Any:
    """Return the value that `text` is as JSON; raises `InvalidRequest` about `field`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"This is not JSON: {error}", field=field) from error
