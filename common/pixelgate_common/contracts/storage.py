"""What storage-service takes and answers.

A picture arrives at `POST /v1/images` as the raw body, so that it is hashed and written as it streams in; what is known
of it stands in the header `X-Pixelgate-Arrival` (base64 of `Arrival` as JSON).
"""

from __future__ import annotations

import base64
import binascii
import math
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pixelgate_common.contracts.filters import All, Any_, Filter, Leaf, Not, leaves
from pixelgate_common.contracts.models import Fingerprint
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.vectors import Base64Vector

ARRIVAL_HEADER = "X-Pixelgate-Arrival"
MAX_ARRIVAL_HEADER_BYTES = 48 * 1024
MAX_TAGS = 100
MAX_ATTRIBUTES = 100

StageName = Literal["clip", "resnet", "palette", "objects", "caption", "cutout"]
STAGES: tuple[StageName, ...] = ("clip", "resnet", "palette", "objects", "caption", "cutout")
SPACES: tuple[StageName, ...] = ("clip", "resnet")
"""The stages whose result is a vector."""
StageState = Literal["pending", "running", "done", "failed", "off"]
Variant = Literal["original", "small", "medium", "preview", "cutout"]
VARIANTS: tuple[Variant, ...] = ("original", "small", "medium", "preview")
"""The files that every stored picture has from its arrival on; a cutout comes later, from its stage, or never."""

Tag = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
Text = Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")]
AttributeValue = bool | int | float | str | None


def _check_attributes(attributes: dict[str, AttributeValue]) -> dict[str, AttributeValue]:
    for name, value in attributes.items():
        if not 1 <= len(name) <= 100 or "\x00" in name:
            raise ValueError("a name has 1 to 100 characters without NUL")
        if isinstance(value, str) and (len(value) > 1000 or "\x00" in value):
            raise ValueError(f"{name}: text of at most 1,000 characters without NUL is needed")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: a finite number is needed")
    return attributes


class Described(BaseModel):
    """What people say of a picture."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Tag] = Field([], max_length=MAX_TAGS)
    attributes: dict[str, AttributeValue] = Field({}, max_length=MAX_ATTRIBUTES)

    _attributes = field_validator("attributes")(_check_attributes)

    @field_validator("tags")
    @classmethod
    def _distinct(cls, tags: list[str]) -> list[str]:
        return list(dict.fromkeys(tags))


class Arrival(Described):
    """What is known of a picture when it arrives."""

    filename: Annotated[str, Field(max_length=500)] | None = None
    source_url: Text | None = None
    page_url: Text | None = None
    page_title: Text | None = None
    alt_text: Text | None = None

    def to_header(self) -> str:
        """Return this as the header's value."""
        return base64.b64encode(self.model_dump_json(exclude_defaults=True).encode()).decode("ascii")

    @classmethod
    def from_header(cls, value: str | None) -> Arrival:
        """Return what the header says; ValueError (pydantic's ValidationError is one) when it cannot be read."""
        if not value:
            return cls()
        if len(value) > MAX_ARRIVAL_HEADER_BYTES:
            raise ValueError(f"tags and attributes together may have at most {MAX_ARRIVAL_HEADER_BYTES * 3 // 4} bytes")
        try:
            return cls.model_validate_json(base64.b64decode(value, validate=True))
        except binascii.Error as error:
            raise ValueError("not base64") from error


class ImagePatch(BaseModel):
    """What a person changes of a picture; a caption set here wins over the model's for good."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Tag] | None = Field(None, max_length=MAX_TAGS)
    attributes: dict[str, AttributeValue] | None = Field(None, max_length=MAX_ATTRIBUTES)
    caption: Text | None = None

    @field_validator("attributes")
    @classmethod
    def _attributes(cls, attributes: dict[str, AttributeValue] | None) -> dict[str, AttributeValue] | None:
        return None if attributes is None else _check_attributes(attributes)


class ObjectFound(BaseModel):
    """One object in a picture."""

    label: str
    score: float
    box: tuple[float, float, float, float] = Field(description="x, y, width, height in the original's pixels.")


class PaletteColor(BaseModel):
    """One colour of a picture."""

    lab: tuple[float, float, float]
    hex: str
    share: float


class StageOfImage(BaseModel):
    """How far one stage is with one picture."""

    state: StageState
    took_ms: float | None = None
    attempts: int = 0
    finished_at: datetime | None = None
    error: str | None = None


class ImageRecord(BaseModel):
    """Everything that is known of a stored picture."""

    id: int
    sha256: str
    filename: str | None
    media_type: str
    format: str
    width: int = Field(description="Of the original as it is looked at (EXIF orientation applied), in pixels.")
    height: int
    bytes: int
    created_at: datetime
    captured_at: datetime | None = None
    source_url: str | None = None
    page_url: str | None = None
    page_title: str | None = None
    alt_text: str | None = None
    tags: list[str] = []
    attributes: dict[str, AttributeValue] = {}
    caption: str | None = None
    caption_by: Literal["model", "person"] | None = None
    objects: list[ObjectFound] = []
    palette: list[PaletteColor] = []
    foreground_palette: list[PaletteColor] = Field([], description="Of what alpha or the cutout leaves visible.")
    exif: dict[str, Any] = {}
    phash: str | None = Field(None, description="Perceptual hash, 64 bits as 16 hexadecimal digits.")
    thumbhash: str | None = Field(None, description="ThumbHash, base64.")
    stages: dict[str, StageOfImage] = {}
    links: dict[str, str] = {}


class Arrived(BaseModel):
    """What became of a picture that arrived: 201 for `created`, 200 for `duplicate`."""

    outcome: Literal["created", "duplicate"]
    image: ImageRecord


Sort = Literal["created_at", "-created_at", "captured_at", "-captured_at", "bytes", "-bytes", "filename", "-filename"]
Facet = Literal["format", "media_type", "tags", "caption_by"]


def _check_filter(tree: All | Any_ | Not | Leaf | None) -> All | Any_ | Not | Leaf | None:
    if tree is not None:
        leaves(tree)
    return tree


class ListImages(BaseModel):
    """A page of pictures, by metadata alone (`POST /v1/images/query`)."""

    model_config = ConfigDict(extra="forbid")

    filter: Filter | None = None
    sort: Sort = "-created_at"
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, max_length=4000)
    facets: list[Facet] = Field([], max_length=8)

    _filter = field_validator("filter")(_check_filter)


class FacetCount(BaseModel):
    """How many pictures have one value of a field."""

    value: str
    count: int


class ImagePage(BaseModel):
    """A page of pictures; `next_cursor` is None on the last one."""

    images: list[ImageRecord]
    next_cursor: str | None
    total: int
    facets: dict[str, list[FacetCount]] = {}


class VectorQuery(BaseModel):
    """Rank pictures by cosine similarity to one vector of one space."""

    space: StageName
    fingerprint: Fingerprint
    vector: Base64Vector
    weight: float = Field(1.0, gt=0, le=100)


class WordQuery(BaseModel):
    """Rank pictures by the words that stand in their caption, objects, tags, file name, alt text and page title."""

    text: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
    weight: float = Field(1.0, gt=0, le=100)


class ColorOfQuery(BaseModel):
    """One colour of a query in CIELAB (D65), and how much it counts."""

    lab: tuple[float, float, float]
    weight: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)


class ColorQuery(BaseModel):
    """Rank pictures by the colours of their palettes.

    A picture's distance is the weighted mean, over the query's colours, of the smallest CIEDE2000 to any of the
    picture's colours with a share of at least 5 %. `of` says which palette counts.
    """

    colors: list[ColorOfQuery] = Field(min_length=1, max_length=64)
    of: Literal["whole", "foreground"] = Field(
        "whole", description="foreground: that of the cutout or alpha; pictures without one count as a whole."
    )
    weight: float = Field(1.0, gt=0, le=100)


Tier = Literal["same", "similar"]
"""`same`: the same picture encoded, resized or slightly cropped anew; `similar`: another picture much like it."""


class Search(BaseModel):
    """Rankings to make and to fuse (weighted reciprocal ranks), under one filter (`POST /v1/search`)."""

    model_config = ConfigDict(extra="forbid")

    vectors: list[VectorQuery] = Field([], max_length=8)
    words: WordQuery | None = None
    colors: ColorQuery | None = None
    collapse: Tier | None = Field(None, description="Show of each group of duplicates of this tier the best hit only.")
    filter: Filter | None = None
    exclude_ids: list[int] = Field([], max_length=1000)
    limit: int = Field(24, ge=1, le=200)
    cursor: str | None = Field(None, max_length=2000)

    _filter = field_validator("filter")(_check_filter)


class ScoreParts(BaseModel):
    """What a hit's score is made of; None where that ranking does not know the picture."""

    vector: float | None = Field(None, description="Cosine similarity in [-1, 1].")
    words: float | None = Field(None, description="Full-text rank, 0 or more.")
    color: float | None = Field(None, description="Colour distance (CIEDE2000), 0 or more; less is closer.")


class Hit(BaseModel):
    """One picture found; `relevance` in [0, 1] is None as long as no calibration is known for the model."""

    image: ImageRecord
    score: float
    relevance: float | None = None
    parts: ScoreParts
    collapsed: list[int] = Field([], description="Duplicates of this picture that were hits too, with `collapse`.")


class SearchPage(BaseModel):
    """A page of hits, best first."""

    hits: list[Hit]
    next_cursor: str | None


class VectorsWanted(BaseModel):
    """Stored vectors to hand out (`POST /v1/vectors`)."""

    space: StageName
    image_ids: list[int] = Field(min_length=1, max_length=100)
    fingerprint: Fingerprint


class StoredVectors(BaseModel):
    """Vectors by picture; None where the picture has none of this fingerprint yet."""

    vectors: dict[int, Base64Vector | None]


class GenerationInfo(BaseModel):
    """All vectors of one space and fingerprint; search uses the active one unless a fingerprint is named."""

    space: StageName
    fingerprint: str
    model: str
    dim: int
    state: Literal["building", "active", "retired"]
    images: int = Field(description="How many pictures have their vector in it.")


class GenerationList(BaseModel):
    """The generations of every space, the oldest first (`GET /v1/generations`)."""

    generations: list[GenerationInfo]


class StageModel(BaseModel):
    """The model that a stage's results must come from (`PUT /v1/stages/{stage}/model`)."""

    fingerprint: Fingerprint
    model: str
    dim: int | None = Field(None, ge=1, le=65536, description="Of the vectors, for a stage that is a space.")


class LeaseWanted(BaseModel):
    """Work that a worker can take (`POST /v1/stages/{stage}/lease`)."""

    fingerprint: Fingerprint
    limit: int = Field(ge=1, le=256)
    lease_s: float = Field(60.0, ge=1, le=3600)


class Leased(BaseModel):
    """One picture to analyse, and the token that its result must carry."""

    image_id: int
    token: str
    attempt: int


class LeaseBatch(BaseModel):
    """The work that was handed out; empty when there is none, or when the stage is paused."""

    items: list[Leased]


class StageResult(BaseModel):
    """What a stage found in one picture, or why it failed.

    `vector` is the result of a space. `result` is, for `caption`: {caption}; for `objects`: {width, height, objects},
    where the boxes are in pixels of a picture of that size and are scaled to the original's when they are kept; for
    `palette`: {palette, foreground}; for `cutout`: {foreground}, after its file was put (`PUT
    /v1/stages/cutout/files/{image_id}?token=…`).
    """

    image_id: int
    token: str
    took_ms: float = Field(ge=0)
    vector: Base64Vector | None = None
    result: dict[str, Any] | None = None
    problem: Problem | None = None
    retry: bool = Field(True, description="Whether another attempt can help where there is a problem.")


class StageResults(BaseModel):
    """Results of one batch (`POST /v1/stages/{stage}/results`)."""

    fingerprint: Fingerprint
    items: list[StageResult] = Field(min_length=1, max_length=256)


class ResultsTaken(BaseModel):
    """How many results were kept; `stale` ones came after their lease had gone to somebody else."""

    accepted: int
    stale: int


class LeaseReturn(BaseModel):
    """Leases to give back unused, e.g. because the model's service is away (`POST /v1/stages/{stage}/release`)."""

    tokens: list[str] = Field(min_length=1, max_length=256)


class RequestAnalysis(BaseModel):
    """Pictures that a stage shall look at, whether or not it looks at all (`POST /v1/stages/{stage}/request`)."""

    model_config = ConfigDict(extra="forbid")

    image_ids: list[Annotated[int, Field(ge=1, lt=2**63)]] = Field(min_length=1, max_length=1000)


class StageProgress(BaseModel):
    """How far one stage is with all pictures."""

    stage: StageName
    fingerprint: str | None
    model: str | None = None
    paused: bool
    pending: int
    running: int
    done: int
    failed: int
    rate_per_s: float
    seconds_left: float | None
    last_errors: list[str] = []


class StageList(BaseModel):
    """The progress of every stage that is on."""

    stages: list[StageProgress]


DuplicateDecision = Literal["same", "different"]


class DuplicateGroup(BaseModel):
    """Pictures that are duplicates of each other, the first that arrived first."""

    tier: Tier
    images: list[ImageRecord]


class DuplicatePage(BaseModel):
    """A page of groups (`GET /v1/duplicates?tier=&limit=&cursor=`); `next_cursor` is None on the last one."""

    groups: list[DuplicateGroup]
    next_cursor: str | None
    pending: int = Field(description="Pictures that have not been compared with the others yet.")


class DecideDuplicates(BaseModel):
    """What a person says of some pictures, for good (`POST /v1/duplicates/decisions`).

    `different`: no two of them are shown as duplicates again; `same`: all of them are one group of the tier `same`.
    """

    model_config = ConfigDict(extra="forbid")

    image_ids: list[Annotated[int, Field(ge=1, lt=2**63)]] = Field(min_length=2, max_length=100)
    decision: DuplicateDecision


class PreviewsWanted(BaseModel):
    """Files of several pictures in one answer of frames, named by id (`POST /v1/files`)."""

    image_ids: list[int] = Field(min_length=1, max_length=256)
    variant: Variant = "preview"


class Times(BaseModel):
    """Processing times in milliseconds."""

    mean: float | None
    p50: float | None
    p95: float | None


class StageStats(BaseModel):
    """Counts, rates and times of one stage; rates are shares of the finished ones."""

    done: int
    failed: int
    success_rate: float | None
    failure_rate: float | None
    processing_ms: Times


class Stats(BaseModel):
    """Counts, bytes, rates and times of the whole store."""

    images: int
    bytes: int
    stages: dict[str, StageStats]
    processing_ms: Times
