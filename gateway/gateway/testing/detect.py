"""A detect-service for flat pictures: an object is whatever differs from the colour of the upper left corner."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request, Response
from PIL import Image, ImageDraw
from pixelgate_common.contracts.detect import (
    FINGERPRINT_HEADER,
    MAX_CUTOUT_IMAGES,
    MAX_IMAGES,
    MODEL_HEADER,
    Annotations,
    Box,
    Detected,
    DetectedItem,
)
from pixelgate_common.errors import PixelgateError
from pixelgate_common.frames import MEDIA_TYPE, encode_frames
from pixelgate_common.images import decode

from gateway.testing.compute import FakeCompute

SCORE = 0.75
_DIFFERS = 48


def mask_of(picture: Image.Image) -> npt.NDArray[np.bool_]:
    """Return where the picture (RGB) differs from its corner, shape (height, width)."""
    pixels = np.asarray(picture).astype(np.int16)
    found: npt.NDArray[np.bool_] = np.abs(pixels - pixels[0, 0]).max(axis=2) > _DIFFERS
    return found


def objects_of(picture: Image.Image) -> list[Box]:
    """Return the one object of a picture, or none."""
    rows, columns = np.nonzero(mask_of(picture))
    if not len(rows):
        return []
    x, y = int(columns.min()), int(rows.min())
    box = (x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y)
    return [Box(label="thing", score=SCORE, box=box)]


class FakeDetect(FakeCompute):
    """The stand-in; `app()` serves it."""

    slots = ("objects", "cutout")

    def add_routes(self, app: FastAPI) -> None:
        """Add `POST /v1/objects`, `/v1/annotate` and `/v1/cutouts`."""

        @app.post("/v1/objects")
        async def objects(request: Request) -> Detected:
            pictures = await self.take(request, "objects", most=MAX_IMAGES)
            items = [self._item(data) for data in pictures]
            return Detected(model="fake objects", fingerprint=self.fingerprint("objects"), items=items)

        @app.post("/v1/annotate")
        async def annotate(request: Request) -> Response:
            (data,) = await self.take(request, "objects", "image")
            wanted = Annotations.model_validate_json(self.last_fields["annotations"])
            picture = decode(data)
            draw = ImageDraw.Draw(picture)
            for found in wanted.objects:
                x, y, width, height = found.box
                right, down = picture.width / wanted.width, picture.height / wanted.height
                draw.rectangle((x * right, y * down, (x + width) * right - 1, (y + height) * down - 1), outline="lime")
            return Response(_saved(picture, "JPEG"), media_type="image/jpeg")

        @app.post("/v1/cutouts")
        async def cutouts(request: Request) -> Response:
            frames: list[tuple[str, bytes | None]] = [
                self._cutout(data) for data in await self.take(request, "cutout", most=MAX_CUTOUT_IMAGES)
            ]
            headers = {MODEL_HEADER: "fake cutout", FINGERPRINT_HEADER: self.fingerprint("cutout")}
            return Response(encode_frames(frames), media_type=MEDIA_TYPE, headers=headers)

    def _item(self, data: bytes) -> DetectedItem:
        try:
            picture = decode(data)
        except PixelgateError as error:
            return DetectedItem(problem=error.to_problem())
        least = float(self.last_query.get("min_score", "0"))
        found = [box for box in objects_of(picture) if box.score >= least]
        return DetectedItem(width=picture.width, height=picture.height, objects=found)

    def _cutout(self, data: bytes) -> tuple[str, bytes]:
        try:
            picture = decode(data)
        except PixelgateError as error:
            return "problem", error.to_problem().model_dump_json().encode()
        mask = Image.fromarray(mask_of(picture).astype(np.uint8) * 255)
        if self.last_query.get("mask_only") == "true":
            return "png", _saved(mask, "PNG")
        cut = picture.convert("RGBA")
        cut.putalpha(mask)
        if self.last_query.get("trim") == "true" and (box := mask.getbbox()):
            cut = cut.crop(box)
        if background := self.last_query.get("background"):
            behind = Image.new("RGBA", cut.size, background)
            behind.alpha_composite(cut)
            cut = behind
        return "png", _saved(cut, "PNG")


def _saved(picture: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, form)
    return out.getvalue()
