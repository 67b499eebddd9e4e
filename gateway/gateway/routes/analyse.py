"""`/v1/caption`, `/v1/objects`, `/v1/palette`, `/v1/cutout`: what one picture tells; nothing is stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pixelgate_common.contracts.detect import MODEL_HEADER
from pixelgate_common.contracts.problems import Problem

from gateway.analyst import (
    CaptionAnswer,
    CaptionWanted,
    CutoutWanted,
    ObjectsAnswer,
    ObjectsWanted,
    PaletteAnswer,
    PaletteWanted,
)
from gateway.answers import json_answer
from gateway.parts import Parts
from gateway.sources import described_body

router = APIRouter(prefix="/v1", tags=["one picture"])
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such picture, or no such model"},
    413: {"model": Problem, "description": "The picture is too large"},
    415: {"model": Problem, "description": "This kind of picture is not taken"},
}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The picture"}}
_DRAWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "The objects; with `annotated`, the picture (JPEG)"}
}


@router.post("/caption", response_model=CaptionAnswer, responses=_PROBLEMS, openapi_extra=described_body(CaptionWanted))
async def caption(request: Request, parts: Parts) -> Response:
    """Say in a sentence what a picture shows."""
    async with parts.sources.read(request, CaptionWanted) as wanted:
        return json_answer(await parts.analyst.caption(wanted.pictures["image"], wanted.options))


@router.post(
    "/objects",
    response_model=ObjectsAnswer,
    responses=_PROBLEMS | _DRAWN,
    openapi_extra=described_body(ObjectsWanted),
)
async def objects(request: Request, parts: Parts) -> Response:
    """Find the objects in a picture, the surest first; or draw them on it."""
    async with parts.sources.read(request, ObjectsWanted) as wanted:
        picture = wanted.pictures["image"]
        if not wanted.options.annotated:
            return json_answer(await parts.analyst.objects(picture, wanted.options))
        drawn, model = await parts.analyst.annotated(picture, wanted.options)
        return Response(drawn, media_type="image/jpeg", headers={MODEL_HEADER: model})


@router.post("/palette", response_model=PaletteAnswer, responses=_PROBLEMS, openapi_extra=described_body(PaletteWanted))
async def palette(request: Request, parts: Parts) -> Response:
    """Take a picture's colours: up to 8 in CIELAB, with their shares."""
    async with parts.sources.read(request, PaletteWanted) as wanted:
        return json_answer(await parts.analyst.palette(wanted.pictures["image"], wanted.options))


@router.post(
    "/cutout",
    response_class=Response,
    responses=_PROBLEMS | _PNG,
    openapi_extra=described_body(CutoutWanted),
)
async def cutout(request: Request, parts: Parts) -> Response:
    """Cut the foreground out of a picture: a PNG with transparency, its mask alone, or on a colour."""
    async with parts.sources.read(request, CutoutWanted, variant="original") as wanted:
        png, model = await parts.analyst.cutout(wanted.pictures["image"], wanted.options)
        return Response(png, media_type="image/png", headers={MODEL_HEADER: model})
