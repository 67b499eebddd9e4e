"""What caption-service takes and answers.

`POST /v1/captions` takes multipart files named `images` (1–32), or one picture as the body (`image/*`), and the query
parameters of `CaptionOptions` plus `fingerprint` and `priority`; it answers with `Captioned`, one item for each
picture, in order. `GET /v1/models` answers with `ServedModels`.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pixelgate_common.contracts.models import Fingerprint
from pixelgate_common.contracts.problems import Problem

MAX_IMAGES = 32
MAX_WORDS = 60


class CaptionOptions(BaseModel):
    """How long a caption may be, in words."""

    model_config = ConfigDict(extra="forbid")

    min_words: int = Field(0, ge=0, le=MAX_WORDS)
    max_words: int = Field(30, ge=1, le=MAX_WORDS)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError("min_words may not be above max_words")
        return self


class CaptionedItem(BaseModel):
    """One picture's caption, or why there is none."""

    caption: str | None = None
    problem: Problem | None = None


class Captioned(BaseModel):
    """The captions of one request, all made by one model."""

    model: str
    fingerprint: Fingerprint
    items: list[CaptionedItem]
