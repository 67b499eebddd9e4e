"""What embed-service takes and answers.

`POST /v1/embed/texts` takes `EmbedTexts`. `POST /v1/embed/images` takes multipart files named `images` (1–64) and the
query parameters `slot`, `fingerprint` and `priority`; both answer with `Embedded`, one item for each input, in order.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pixelgate_common.contracts.models import Fingerprint, Priority, ServedModel, Slot
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.vectors import Base64Vector

MAX_TEXTS = 256
MAX_TEXT_CHARS = 2000
MAX_IMAGES = 64


class EmbedTexts(BaseModel):
    """Texts to turn into vectors of the slot's space."""

    model_config = ConfigDict(extra="forbid")

    texts: list[Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]] = Field(
        min_length=1, max_length=MAX_TEXTS
    )
    slot: Slot = "clip"
    fingerprint: Fingerprint | None = Field(None, description="The model that must answer; another one is 409.")
    priority: Priority = "interactive"


class EmbeddedItem(BaseModel):
    """One input's vector (unit length, shape (dim,)), or why there is none."""

    vector: Base64Vector | None = None
    problem: Problem | None = None


class Embedded(BaseModel):
    """The vectors of one request, all made by one model."""

    slot: Slot
    model: str
    fingerprint: Fingerprint
    dim: int = Field(ge=1, le=65536)
    items: list[EmbeddedItem]


class EmbedModel(ServedModel):
    """A model as embed-service serves it."""

    dim: int = Field(ge=1, le=65536)
    inputs: list[Literal["image", "text"]]
    image_size_px: int


class EmbedModels(BaseModel):
    """All models that embed-service can answer with; for each slot the one in use comes first."""

    set: str
    models: list[EmbedModel]
