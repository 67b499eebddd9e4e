"""What color-service takes and answers.

- `POST /v1/palettes`: multipart files named `images` (1–64), or one picture as the body (`image/*`); query parameters
  `colors` (1–8), `fingerprint` and `priority`. Answers with `Palettes`, one item for each picture, in order.
- `POST /v1/rank`: `RankPalettes` → `Ranked`.
- `POST /v1/complements`: `Complements` → `Complemented`.
- `POST /v1/blend`: multipart files `image_1`, `image_2` and optionally `mask`, fields of `BlendOptions` → `image/png`.
- `POST /v1/collage`: multipart files named `images` (1–100), fields of `CollageOptions` → `image/jpeg` or `image/png`.
- `GET /v1/models` answers with `ServedModels`: the slot `palette`, whose fingerprint names the method and its version.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pixelgate_common.contracts.models import Fingerprint
from pixelgate_common.contracts.problems import Problem

MAX_IMAGES = 64
MAX_COLORS = 8
MAX_COLLAGE_IMAGES = 100
MIN_SHARE = 0.05
"""Colours with a smaller share of the picture do not count when pictures are compared by colour."""

HexColor = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
Lab = Annotated[tuple[float, float, float], Field(description="CIELAB, D65: L* in [0, 100], a* and b* about ±128.")]
ColorMode = Literal["similar", "complementary"]


class Color(BaseModel):
    """One colour of a palette; the shares of a palette add up to 1."""

    lab: Lab
    hex: HexColor
    share: float = Field(gt=0, le=1)


class PaletteItem(BaseModel):
    """One picture's colours, the largest share first, or why there are none.

    `foreground` is the palette of what its alpha channel leaves visible, when it has one that hides anything; then
    `palette` is of the whole rectangle as it looks on white.
    """

    palette: list[Color] = []
    foreground: list[Color] | None = None
    problem: Problem | None = None


class Palettes(BaseModel):
    """The palettes of one request."""

    model: str
    fingerprint: Fingerprint
    items: list[PaletteItem]


class WeightedLab(BaseModel):
    """One colour and how much it counts."""

    model_config = ConfigDict(extra="forbid")

    lab: Lab
    weight: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)


class RankPalettes(BaseModel):
    """Palettes to order by their distance to some colours (weights: shares); the closest first."""

    model_config = ConfigDict(extra="forbid")

    colors: list[WeightedLab] = Field(min_length=1, max_length=64)
    palettes: list[Annotated[list[WeightedLab], Field(min_length=1, max_length=MAX_COLORS)]] = Field(
        min_length=1, max_length=10_000
    )
    mode: ColorMode = "similar"
    limit: int = Field(100, ge=1, le=10_000)


class RankedPalette(BaseModel):
    """The place of a palette in the request, from 0, and its distance (mean CIEDE2000)."""

    index: int
    distance: float


class Ranked(BaseModel):
    """The closest palettes, the closest first; equal ones in the order of the request."""

    ranked: list[RankedPalette]


class Complements(BaseModel):
    """Colours to turn by 180° of hue in HSV."""

    model_config = ConfigDict(extra="forbid")

    colors: list[HexColor] = Field(min_length=1, max_length=256)


class Complemented(BaseModel):
    """The complement of each colour, in order; None for greys, which have no hue."""

    colors: list[HexColor | None]


class BlendOptions(BaseModel):
    """How two pictures are blended (Laplacian pyramids)."""

    model_config = ConfigDict(extra="forbid")

    levels: int | None = Field(None, ge=1, le=12, description="Bands of the pyramid; unset: as many as fit, at most 6.")
    position: float = Field(0.5, ge=0, le=1, description="Where the seam is without a mask, as a part of the side.")
    direction: Literal["horizontal", "vertical"] = Field(
        "horizontal", description="horizontal: image_1 on the left; vertical: image_1 above."
    )


class CollageOptions(BaseModel):
    """How pictures are laid out in a grid, row by row."""

    model_config = ConfigDict(extra="forbid")

    columns: int | None = Field(None, ge=1, le=20, description="Unset: as square as can be.")
    cell_px: int = Field(200, ge=16, le=1024)
    gap_px: int = Field(6, ge=0, le=64)
    background: HexColor = "#ffffff"
    frame_first: bool = Field(False, description="Draw a frame around the first picture: the query.")
    frame_color: HexColor = "#e53935"
    format: Literal["jpeg", "png"] = "jpeg"
