"""`/v1/duplicates`: pictures that are stored more than once, and what people say of that."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import DecideDuplicates, DuplicatePage, Tier

from gateway.answers import json_answer
from gateway.parts import Parts

router = APIRouter(prefix="/v1/duplicates", tags=["duplicates"])


@router.get("", response_model=DuplicatePage)
async def list_duplicates(
    parts: Parts,
    tier: Annotated[Tier, Query(description="`same`: re-encoded, resized or slightly cropped; `similar`: much alike.")],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(min_length=1, max_length=4000)] = None,
) -> Response:
    """List groups of duplicates; a page is continued by its `next_cursor`."""
    return json_answer(await parts.storage.duplicates(tier, limit, cursor))


@router.post(
    "/decisions", status_code=204, response_class=Response, responses={404: {"model": Problem}, 204: {"model": None}}
)
async def decide(decision: DecideDuplicates, parts: Parts) -> Response:
    """Remember for good that pictures are the same, or that no two of them are."""
    await parts.storage.decide_duplicates(decision)
    return Response(status_code=204)
