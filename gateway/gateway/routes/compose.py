"""`/v1/blend` and `/v1/collage`: several pictures in one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pixelgate_common.contracts.problems import Problem

from gateway.answers import picture_answer
from gateway.composer import BLEND_PLACES, BlendWanted, CollageWanted, check_room, collage_options
from gateway.parts import Parts
from gateway.sources import described_body

router = APIRouter(prefix="/v1", tags=["several pictures"])
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such picture; or the search found nothing"},
    413: {"model": Problem, "description": "A picture is too large"},
    415: {"model": Problem, "description": "This kind of picture is not taken"},
}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The blend"}}
COLLAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}, "image/png": {}}, "description": "The collage"}
}


@router.post(
    "/blend",
    response_class=Response,
    responses=_PROBLEMS | _PNG,
    openapi_extra=described_body(BlendWanted, BLEND_PLACES),
)
async def blend(request: Request, parts: Parts) -> Response:
    """Blend two pictures into one of the first one's size (Laplacian pyramids), along a seam or by a mask."""
    async with parts.sources.read(request, BlendWanted, BLEND_PLACES, variant="original") as wanted:
        return Response(await parts.composer.blend(wanted.pictures, wanted.options), media_type="image/png")


@router.post("/collage", response_class=Response, responses=_PROBLEMS | COLLAGE)
async def collage(wanted: CollageWanted, parts: Parts) -> Response:
    """Lay stored pictures, or what a search finds, out in a grid, row by row."""
    options = collage_options(wanted)
    if wanted.image_ids is not None:
        made = await parts.composer.collage(wanted.image_ids, options)
        return picture_answer(made, f"image/{options.format}", wanted.image_ids, None)
    assert wanted.search is not None  # one of the two is there, and checked
    check_room(wanted.search.limit, field="search.limit")
    result = await parts.searcher.find(wanted.search.terms, wanted.search)
    made, ids = await parts.composer.collage_of(result, options)
    return picture_answer(made, f"image/{options.format}", ids, result.found.next_cursor)
