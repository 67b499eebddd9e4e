"""`/v1/models`: which models the answers come from, over all services."""

from __future__ import annotations

from fastapi import APIRouter, Response

from gateway.answers import json_answer
from gateway.model_overview import ModelsInUse, overview
from gateway.parts import Parts

router = APIRouter(prefix="/v1", tags=["operations"])


@router.get("/models", response_model=ModelsInUse)
async def models(parts: Parts) -> Response:
    """Return the model of every slot, and how many pictures have vectors of which model."""
    return json_answer(await overview(parts.embed, (parts.caption, parts.detect, parts.color), parts.storage))
