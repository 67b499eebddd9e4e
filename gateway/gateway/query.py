"""What a search can ask for: weighted terms (texts, pictures, colours), a filter, and a page."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pixelgate_common.colors import parse_color
from pixelgate_common.contracts.color import ColorMode
from pixelgate_common.contracts.filters import All, Any_, Filter, Leaf, Not, leaves
from pixelgate_common.contracts.storage import Hit, Tier
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


def _known_color(text: str) -> str:
    parse_color(text)
    return text


def _check_filter(tree: FilterTree | None) -> FilterTree | None:
    if tree is not None:
        leaves(tree)
    return tree


NotYet = SkipJsonSchema[Annotated[Any, BeforeValidator(_not_yet)]]
"""A field of the API's design that is refused by name until it works: silence would look like an answer."""


ColorText = Annotated[
    str,
    Field(min_length=1, max_length=100, description="`#rrggbb`, `#rgb` or a CSS name (`teal`)."),
    AfterValidator(_known_color),
]
_KINDS = ("text", "image_id", "image_url", "image", "color", "palette_of")


class Term(BaseModel):
    """One weighted part of a query: a text, a picture (stored, behind a URL, in base64), a colour, or a palette."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")] | None = None
    image_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    image_url: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    image: Annotated[str, Field(min_length=1, description="A picture file in base64, or as a data URI.")] | None = None
    color: ColorText | None = None
    palette_of: Annotated[int, Field(ge=1, lt=2**63, description="A stored picture, by its colours.")] | None = None
    weight: float = Field(
        1.0, ge=-100, le=100, allow_inf_nan=False, description="Below 0: pictures unlike this (not for colours)."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a term has exactly one of {', '.join(_KINDS)}")
        if self.weight == 0:
            raise ValueError("a weight of 0 would leave the term out: leave it out instead")
        return self

    @property
    def is_color(self) -> bool:
        """Whether this is about colours, and not about what pictures show."""
        return self.color is not None or self.palette_of is not None


class Page(BaseModel):
    """The part of a search that says which hits are wanted, and how many."""

    model_config = ConfigDict(extra="forbid")

    space: Space = Field("clip", description="`resnet` compares pictures with pictures only.")
    filter: Annotated[Filter | None, AfterValidator(_check_filter)] = Field(
        None, examples=[{"all": [{"field": "objects.dog", "gte": 2}, {"field": "caption", "exists": True}]}]
    )
    limit: int = Field(24, ge=1, le=200)
    cursor: Cursor | None = None
    include_self: bool = Field(False, description="Whether stored pictures that the query names may be hits.")
    answer: Literal["json", "collage"] = Field("json", description="collage: one picture (JPEG) with all hits.")
    mode: ColorMode = Field("similar", description="Of colours: alike by CIEDE2000, or their complements in HSV.")
    color_of: Literal["whole", "foreground"] = Field(
        "whole", description="Which colours of the pictures count; foreground: of the cutout, where there is one."
    )
    collapse: Tier | None = Field(None, description="Show of each group of duplicates of this tier the best hit only.")
    min_relevance: NotYet = None


class Query(Page):
    """A search (`POST /v1/search`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"terms": [{"text": "a dog"}, {"text": "snow", "weight": -0.5}], "limit": 10},
                {"terms": [{"color": "#2060c0", "weight": 2}, {"color": "gold"}], "mode": "complementary"},
                {"terms": [{"text": "two dogs"}], "filter": {"field": "objects.dog", "gte": 2}, "collapse": "same"},
            ]
        }
    )

    terms: list[Term] = Field(min_length=1, max_length=100)


class PictureQuery(Page):
    """What stands beside the picture in `POST /v1/search/by-image`."""

    weight: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)
    terms: list[Term] = Field([], max_length=100, description="Further terms, beside the picture.")
    match: Literal["content", "palette"] = Field("content", description="palette: by the picture's colours alone.")
    crop: tuple[float, float, float, float] | None = Field(
        None, description="x, y, width, height of the part to search by, in the upright picture's pixels."
    )

    @model_validator(mode="after")
    def _weight_counts(self) -> Self:
        if self.weight == 0:
            raise ValueError("a weight of 0 would leave the picture out")
        return self


class Found(BaseModel):
    """A page of hits, best first, and the fingerprint of the model that the vectors came from, by space.

    `models` is empty where the query was about colours alone: they are compared without a model.
    """

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
