"""`/v1/stats`: counts and times."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pixelgate_common.contracts.storage import Stats

from gateway.answers import json_answer
from gateway.parts import Parts

router = APIRouter(prefix="/v1", tags=["operations"])


@router.get("/stats", response_model=Stats)
async def stats(parts: Parts) -> Response:
    """Return how many pictures and bytes are stored, and how the analysis fares."""
    return json_answer(await parts.storage.stats())
