"""`/v1/images/{id}/cutout` and `/annotated`: pictures of a picture that are made by analysis."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pixelgate_common.contracts.detect import MODEL_HEADER, CutoutOptions
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import PixelgateError

from gateway.analyst import ObjectsWanted, annotated_etag
from gateway.answers import Relay
from gateway.parts import Parts
from gateway.problems import status_of
from gateway.routes.images import FILE_ANSWERS, ImageId, asked_of_file
from gateway.sources import Brought

router = APIRouter(prefix="/v1/images", tags=["images"])
_MADE_NOW = {"Cache-Control": "no-store"}
_DRAWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "The picture with its objects drawn on it"},
    304: {"description": "It is the one that `If-None-Match` names"},
    404: {"model": Problem, "description": "There is no such picture"},
}


@router.get("/{image_id}/cutout", response_class=Response, responses=FILE_ANSWERS)
@router.head("/{image_id}/cutout", response_class=Response, responses=FILE_ANSWERS, include_in_schema=False)
async def read_cutout(image_id: ImageId, request: Request, parts: Parts) -> Response:
    """Return the picture's cutout as it is stored (PNG); where there is none, one that is made now and not kept."""
    try:
        return Relay(await parts.storage.open_file(request.method, image_id, "cutout", asked_of_file(request)))
    except PixelgateError as error:
        if status_of(error) != 404:
            raise
    # As the stage would make it. Asking for the preview says 404 when there is no such picture at all.
    async with parts.sources.one_stored(image_id, "preview") as preview:
        png, model = await parts.analyst.cutout(Brought("image_id", preview, image_id), CutoutOptions())
    return Response(png, media_type="image/png", headers={MODEL_HEADER: model, **_MADE_NOW})


@router.get("/{image_id}/annotated", response_class=Response, responses=_DRAWN)
@router.head("/{image_id}/annotated", response_class=Response, responses=_DRAWN, include_in_schema=False)
async def read_annotated(image_id: ImageId, request: Request, parts: Parts) -> Response:
    """Return the preview with the picture's objects drawn on it (JPEG); where nobody looked yet, it is done now."""
    record = await parts.storage.record(image_id)
    stage = record.stages.get("objects")
    known = bool(record.objects) or (stage is not None and stage.state == "done")
    etag = annotated_etag(record)
    # Other objects can be found any day, so a copy is asked after each time; that costs one record.
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"} if known else _MADE_NOW
    if known and etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    async with parts.sources.one_stored(image_id, "preview") as preview:
        if known:
            drawn = await parts.analyst.draw_record(record, preview)
        else:
            drawn, _ = await parts.analyst.annotated(Brought("image_id", preview, image_id), ObjectsWanted())
    return Response(drawn, media_type="image/jpeg", headers=headers)
