"""What detect-service takes and answers.

- `POST /v1/objects`: multipart files named `images` (1–32), or one picture as the body (`image/*`); query parameters
  `min_score`, `fingerprint` and `priority`. Answers with `Detected`, one item for each picture, in order.
- `POST /v1/annotate`: multipart with the file `image` and the field `annotations` (JSON of `Annotations`); answers with
  the picture with its boxes and labels drawn on it, as `image/jpeg`.
- `POST /v1/cutouts`: multipart files named `images` (1–8), or one picture as the body; query parameters of
  `CutoutOptions` plus `fingerprint` and `priority`. Answers with frames (`pixelgate_common.frames`), one a picture,
  in order: named `png`, the cutout's bytes, or `problem`, a `Problem` as JSON. The headers `X-Pixelgate-Model` and
  `X-Pixelgate-Fingerprint` say what made them.
- `GET /v1/models` answers with `ServedModels`: slots `objects` and `cutout`, the default of each first.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pixelgate_common.contracts.models import Fingerprint
from pixelgate_common.contracts.problems import Problem

MAX_IMAGES = 32
MAX_CUTOUT_IMAGES = 8
MODEL_HEADER = "X-Pixelgate-Model"
FINGERPRINT_HEADER = "X-Pixelgate-Fingerprint"

HexColor = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Box(BaseModel):
    """One object found, in the pixels of the picture that was looked at, upright."""

    label: str
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels.")


class DetectedItem(BaseModel):
    """One picture's objects, the surest first, and the size that their boxes are measured in; or why there are none."""

    width: int | None = None
    height: int | None = None
    objects: list[Box] = []
    problem: Problem | None = None


class Detected(BaseModel):
    """The objects of one request, all found by one model."""

    model: str
    fingerprint: Fingerprint
    items: list[DetectedItem]


class Annotations(BaseModel):
    """Objects to draw on a picture; `width` and `height` are those of the picture that the boxes were measured in."""

    model_config = ConfigDict(extra="forbid")

    width: int = Field(ge=1, le=1_000_000)
    height: int = Field(ge=1, le=1_000_000)
    objects: list[Box] = Field(max_length=1000)


class CutoutOptions(BaseModel):
    """What a cutout is made by, and what is handed out of it."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = Field(
        None, description="One of the cutout models that `GET /v1/models` lists; unset: the default one."
    )
    mask_only: bool = Field(False, description="Answer with the mask (8-bit grey) in place of the RGBA cutout.")
    trim: bool = Field(False, description="Cut away the border in which nothing is left.")
    background: HexColor | None = Field(None, description="A colour behind the cutout, in place of transparency.")
