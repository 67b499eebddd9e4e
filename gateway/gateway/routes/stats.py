"""`/v1/stats` and `/v1/models`: counts and times, and which models the answers come from."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pixelgate_common.contracts.storage import Stats
from pydantic import BaseModel

from gateway.answers import json_answer
from gateway.parts import Parts

router = APIRouter(prefix="/v1", tags=["operations"])


class SlotModel(BaseModel):
    """The model in one slot."""

    slot: str
    model: str
    fingerprint: str
    state: Literal["ready"]
    dim: int
    inputs: list[Literal["image", "text"]]
    backend: str
    precision: str


class ModelsInUse(BaseModel):
    """The model set, and the model of every slot."""

    set: str
    slots: list[SlotModel]


@router.get("/stats", response_model=Stats)
async def stats(parts: Parts) -> Response:
    """Return how many pictures and bytes are stored, and how the analysis fares."""
    return json_answer(await parts.storage.stats())


@router.get("/models", response_model=ModelsInUse)
async def models(parts: Parts) -> Response:
    """Return the models that are loaded."""
    known = await parts.models.all()
    slots = [
        SlotModel(
            slot=model.slot,
            model=model.model,
            fingerprint=model.fingerprint,
            state="ready",
            dim=model.dim,
            inputs=model.inputs,
            backend=model.backend,
            precision=model.precision,
        )
        for model in known.models
    ]
    return json_answer(ModelsInUse(set=known.set, slots=slots))
