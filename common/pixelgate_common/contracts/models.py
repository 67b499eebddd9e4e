"""How a compute service names the models that it serves (`GET /v1/models` of each)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Priority = Literal["interactive", "bulk"]
Slot = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/@+-]{1,200}$")]


class ServedModel(BaseModel):
    """A model, or a method without weights, that a compute service answers with."""

    slot: Slot
    model: str = Field(description="The name for people, e.g. `blip-image-captioning-base` or `starter`.")
    fingerprint: Fingerprint = Field(description="Architecture, weights digest and preprocessing in one name.")
    backend: str = Field(description="What computes: `torch`, `openvino`, `onnxruntime` or `numpy`.")
    precision: str = Field("fp32", description="`fp32`, `bf16` or `int8`.")
    device: str = "cpu"
    state: Literal["loaded", "idle"] = Field(
        "loaded", description="idle: not in memory now, because nobody asked for a while; loaded when next asked."
    )


class ServedModels(BaseModel):
    """All models that a compute service can answer with; for each slot the one in use comes first."""

    set: str
    models: list[ServedModel]
