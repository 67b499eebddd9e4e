"""`/v1/stats` and `/v1/models`: counts and times, and which models the answers come from."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from pixelgate_common.contracts.storage import Stats
from pydantic import BaseModel

from gateway.answers import json_answer
from gateway.parts import Parts

router = APIRouter(prefix="/v1", tags=["operations"])


class Generation(BaseModel):
    """All vectors that one model made; the active one is searched."""

    fingerprint: str
    state: Literal["building", "active", "retired"]
    images: int


class SlotModel(BaseModel):
    """The model in use in one slot, and the generations of vectors that there are."""

    slot: str
    model: str
    fingerprint: str
    state: Literal["ready"]
    dim: int
    inputs: list[Literal["image", "text"]]
    backend: str
    precision: str
    device: str
    generations: list[Generation]


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
    """Return the model in use in every slot, and how many pictures have vectors of which model."""
    known, stored = await asyncio.gather(parts.models.all(), parts.storage.generations())
    slots: dict[str, SlotModel] = {}
    for model in known.models:  # for each slot the one in use comes first
        if model.slot not in slots:
            slots[model.slot] = SlotModel(
                slot=model.slot,
                model=model.model,
                fingerprint=model.fingerprint,
                state="ready",
                dim=model.dim,
                inputs=model.inputs,
                backend=model.backend,
                precision=model.precision,
                device=model.device,
                generations=[
                    Generation(fingerprint=one.fingerprint, state=one.state, images=one.images)
                    for one in stored.generations
                    if one.space == model.slot
                ],
            )
    return json_answer(ModelsInUse(set=known.set, slots=list(slots.values())))
