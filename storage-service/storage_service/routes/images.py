"""Routes: a picture arrives, is read, edited and deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import ARRIVAL_HEADER, Arrival, Arrived, ImagePatch, ImageRecord
from pixelgate_common.errors import InvalidRequest, NotFound, field_problems
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from storage_service.parts import PartsNow
from storage_service.records import fetch_record, patch_record

router = APIRouter(prefix="/v1/images", tags=["images"])
ImageId = Annotated[int, Path(ge=1, lt=1 << 63)]
RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""What OpenAPI is told of a route that takes a file as it is."""


@router.post(
    "",
    status_code=201,
    responses={
        200: {"model": Arrived, "description": "The picture was stored already"},
        413: {"model": Problem},
        415: {"model": Problem},
        503: {"model": Problem},
        507: {"model": Problem},
    },
    openapi_extra=RAW_BODY,
)
async def take(
    request: Request,
    response: Response,
    parts: PartsNow,
    arrival_header: Annotated[str | None, Header(alias=ARRIVAL_HEADER)] = None,
) -> Arrived:
    """Store the picture that is the request's raw body: 201 when it is new, 200 when its bytes are known."""
    declared = request.headers.get("content-length", "")
    arrived = await parts.arrivals.take(
        request_body(request), _arrival(arrival_header), int(declared) if declared.isdecimal() else None
    )
    if arrived.outcome == "duplicate":
        response.status_code = 200
    return arrived


@router.get("/{image_id}")
async def read(image_id: ImageId, parts: PartsNow) -> ImageRecord:
    """Return everything that is known of a picture."""
    async with parts.db.connection() as conn:
        record = await fetch_record(conn, image_id)
    if record is None:
        raise NotFound(f"There is no picture {image_id}.")
    return record


@router.patch("/{image_id}")
async def change(image_id: ImageId, patch: ImagePatch, parts: PartsNow) -> ImageRecord:
    """Change tags, attributes or caption; what is not named stays."""
    async with parts.db.connection() as conn:
        if not await patch_record(conn, image_id, patch):
            raise NotFound(f"There is no picture {image_id}.")
    await parts.generations.refresh_payload([image_id])
    return await read(image_id, parts)


@router.delete("/{image_id}", status_code=204)
async def delete(image_id: ImageId, parts: PartsNow) -> None:
    """Delete a picture from all stores."""
    await parts.removals.delete(image_id)


async def request_body(request: Request) -> AsyncIterator[bytes]:
    """Yield the request's body; InvalidRequest when the client goes away in the middle of it."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise InvalidRequest("The connection ended before the picture was complete.") from error


def _arrival(header: str | None) -> Arrival:
    try:
        return Arrival.from_header(header)
    except ValidationError as error:
        fields = field_problems(error.errors())
        raise InvalidRequest("; ".join(f"{f.field}: {f.message}" for f in fields[:5]), errors=fields) from error
    except ValueError as error:
        raise InvalidRequest(f"{ARRIVAL_HEADER}: {error}", field=ARRIVAL_HEADER) from error
