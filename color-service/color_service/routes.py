"""The HTTP side: `/v1/palettes`, `/v1/rank`, `/v1/complements`, `/v1/blend`, `/v1/collage`, `/v1/models`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from io import BytesIO
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from PIL import Image
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.contracts.color import (
    MAX_COLLAGE_IMAGES,
    MAX_COLORS,
    MAX_IMAGES,
    BlendOptions,
    CollageOptions,
    Complemented,
    Complements,
    PaletteItem,
    Palettes,
    Ranked,
    RankPalettes,
)
from pixelgate_common.contracts.models import Fingerprint as FingerprintName
from pixelgate_common.contracts.models import Priority, ServedModel, ServedModels
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest
from pixelgate_common.images import ImageRefused
from starlette.responses import Response

from color_service.blend import blend_files
from color_service.collage import collage, grid, in_cell
from color_service.fields import about_field
from color_service.forms import form_schema, json_body, named_files, options, pictures, schema_of
from color_service.jobs import Jobs, Seats
from color_service.palette import METHOD, fingerprint, picture_colors
from color_service.ranking import complements, rank
from color_service.settings import Settings

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "The body or a picture is too large"},
    415: {"model": Problem, "description": "A picture of a kind that is not taken"},
    503: {"model": Problem, "description": "Too much work at the moment; see Retry-After"},
}
_MISMATCH: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "Palettes are made by another method than the wanted one"}
}
_BLENDED: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}
_COLLAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}, "image/png": {}}}}
_PNG_EFFORT = 3  # of 9: a third larger than the default at four times the speed
_JPEG_QUALITY = 90


def color_router(settings: Settings, budget: ByteBudget) -> APIRouter:
    """Return the routes; `budget` bounds all bodies in memory."""
    router = APIRouter(prefix="/v1", tags=["color"])
    limits = settings.decode_limits

    @asynccontextmanager
    async def body_of(request: Request) -> AsyncIterator[bytes]:
        declared = request.headers.get("content-length", "")
        with budget.hold(int(declared) if declared.isdecimal() else settings.max_request_bytes):
            yield await request.body()

    @router.post(
        "/palettes",
        responses=_PROBLEMS | _MISMATCH,
        response_model_exclude_none=True,
        openapi_extra=_body(
            {
                "multipart/form-data": form_schema(None, {"images": MAX_IMAGES}, ["images"]),
                "image/*": {"type": "string", "format": "binary"},
            }
        ),
    )
    async def palettes(
        request: Request,
        colors: Annotated[int, Query(ge=1, le=MAX_COLORS)] = MAX_COLORS,
        wanted: Annotated[FingerprintName | None, Query(alias="fingerprint")] = None,
        priority: Annotated[Priority, Query()] = "interactive",
    ) -> Palettes:
        """Return the colours of pictures: multipart files named `images`, or one picture as the body (`image/*`)."""
        ours = fingerprint(colors)
        if wanted not in (None, ours):
            raise FingerprintMismatch(f"Palettes are made by {ours}, not {wanted}.", field="fingerprint")

        async def item(seats: Seats, picture: bytes) -> PaletteItem:
            try:
                found = await seats.run("palette", lambda: picture_colors(picture, limits, colors))
            except ImageRefused as error:
                return PaletteItem(problem=error.to_problem())
            return PaletteItem(palette=found.palette, foreground=found.foreground)

        async with body_of(request) as body:
            files = pictures(request.headers.get("content-type", ""), body, "images", MAX_IMAGES)
            with _jobs(request).admit(len(files), priority) as seats:
                items = await asyncio.gather(*(item(seats, file) for file in files))
        return Palettes(model=METHOD, fingerprint=ours, items=items)

    @router.post(
        "/rank",
        responses=_PROBLEMS,
        openapi_extra=_body({"application/json": schema_of(RankPalettes)}),
    )
    async def rank_palettes(request: Request) -> Ranked:
        """Order palettes by their distance to some colours, or to the complements of these."""
        async with body_of(request) as body:
            # Not by FastAPI, which would read the body before anything bounds how many are in memory.
            ranked = await _jobs(request).run("rank", lambda: rank(json_body(RankPalettes, body)))
        return Ranked(ranked=ranked)

    @router.post("/complements")
    async def complement(body: Complements) -> Complemented:
        """Turn colours by 180° of hue in HSV; greys have no complement."""
        return Complemented(colors=complements(body.colors))

    @router.post(
        "/blend",
        response_class=Response,
        responses=_PROBLEMS | _BLENDED,
        openapi_extra=_body(
            {
                "multipart/form-data": form_schema(
                    BlendOptions, {"image_1": 1, "image_2": 1, "mask": 1}, ["image_1", "image_2"]
                )
            }
        ),
    )
    async def blend(request: Request) -> Response:
        """Blend two pictures along a seam or by a mask; the answer has the size of `image_1`."""
        async with body_of(request) as body:
            files, fields = named_files(request.headers.get("content-type", ""), body, {"image_1", "image_2", "mask"})
            for name in ("image_1", "image_2"):
                if not files[name]:
                    raise InvalidRequest(f"A file named {name} is needed.", field=name)
            how, mask = options(BlendOptions, fields), files["mask"][0] if files["mask"] else None

            def work() -> bytes:
                first, second = files["image_1"][0], files["image_2"][0]
                return _encoded(blend_files(first, second, mask, how, limits, settings.max_blend_pixels), "png")

            blended = await _jobs(request).run("blend", work)
        return Response(blended, media_type="image/png")

    @router.post(
        "/collage",
        response_class=Response,
        responses=_PROBLEMS | _COLLAGE,
        openapi_extra=_body(
            {"multipart/form-data": form_schema(CollageOptions, {"images": MAX_COLLAGE_IMAGES}, ["images"])}
        ),
    )
    async def make_collage(request: Request) -> Response:
        """Lay pictures out in a grid, row by row, the first in a frame on request."""

        def in_own_cell(place: int, picture: bytes, how: CollageOptions) -> Image.Image:
            with about_field(f"images.{place}"):
                return in_cell(picture, how, limits, framed=how.frame_first and place == 0)

        async with body_of(request) as body:
            files, fields = named_files(request.headers.get("content-type", ""), body, {"images"}, MAX_COLLAGE_IMAGES)
            how = options(CollageOptions, fields)
            if not files["images"]:
                raise InvalidRequest("At least one file named images is needed.", field="images")
            columns, rows = grid(len(files["images"]), how, settings.max_collage_pixels)
            with _jobs(request).admit(len(files["images"]) + 1) as seats:
                # Each picture is a job of its own, so that a large collage keeps nobody waiting for its end.
                tiles = await asyncio.gather(
                    *(
                        seats.run("collage", partial(in_own_cell, place, picture, how))
                        for place, picture in enumerate(files["images"])
                    )
                )
                made = await seats.run("collage", lambda: _encoded(collage(tiles, columns, rows, how), how.format))
        return Response(made, media_type=f"image/{how.format}")

    @router.get("/models")
    async def models() -> ServedModels:
        """Return the method that makes palettes; it has no weights."""
        served = ServedModel(slot="palette", model=METHOD, fingerprint=fingerprint(), backend="numpy")
        return ServedModels(set="none", models=[served])

    return router


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
        }
    }


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


def _encoded(picture: Image.Image, form: str) -> bytes:
    buffer = BytesIO()
    if form == "png":
        picture.save(buffer, "PNG", compress_level=_PNG_EFFORT)
    else:
        picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
