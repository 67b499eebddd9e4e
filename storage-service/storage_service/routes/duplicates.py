"""Routes: duplicates are listed, and what people say of them is remembered."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import DecideDuplicates, DuplicatePage, Tier

from storage_service.duplicates import DuplicatesAsked, decide, fetch_groups
from storage_service.parts import PartsNow

router = APIRouter(prefix="/v1/duplicates", tags=["duplicates"])


@router.get("", responses={422: {"model": Problem}})
async def page(
    parts: PartsNow,
    tier: Tier = "same",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=2000)] = None,
) -> DuplicatePage:
    """List groups of duplicates, in the order of their first pictures."""
    return await fetch_groups(parts.db, DuplicatesAsked(tier=tier, limit=limit, cursor=cursor))


@router.post("/decisions", status_code=204, responses={404: {"model": Problem}})
async def decisions(decided: DecideDuplicates, parts: PartsNow) -> None:
    """Remember for good that some pictures are the same, or that they are different."""
    await decide(parts.db, decided)
