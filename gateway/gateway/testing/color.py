"""A color-service with real colours and simple ways: PIL's quantiser, a plain mix in place of pyramids, a bare grid."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request, Response
from PIL import Image, ImageDraw
from pixelgate_common.colors import srgb_to_lab, to_hex
from pixelgate_common.contracts.color import (
    MAX_COLLAGE_IMAGES,
    MAX_COLORS,
    MAX_IMAGES,
    BlendOptions,
    CollageOptions,
    Color,
    PaletteItem,
    Palettes,
)
from pixelgate_common.errors import PixelgateError
from pixelgate_common.images import decode

from gateway.testing.compute import FakeCompute


def palette_of(data: bytes, colors: int = MAX_COLORS) -> PaletteItem:
    """Return the palettes of a picture file; raises as `decode` does."""
    picture = decode(data, mode="RGBA")
    visible = np.asarray(picture.getchannel("A")) > 127
    foreground = None if visible.all() else _colors(np.asarray(picture)[..., :3][visible], colors)
    return PaletteItem(palette=_colors(np.asarray(decode(data)).reshape(-1, 3), colors), foreground=foreground)


def _colors(pixels: npt.NDArray[np.uint8], most: int) -> list[Color]:
    if not len(pixels):
        return []
    row = Image.fromarray(np.ascontiguousarray(pixels[None], dtype=np.uint8)).quantize(most)
    table = (row.getpalette() or [])[: 3 * most]
    found = []
    counts = np.bincount(np.asarray(row).ravel())
    for index in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
        rgb, count = table[3 * index : 3 * index + 3], int(counts[index])
        light, a, b = (float(value) for value in srgb_to_lab(np.array(rgb, dtype=np.float64)))
        found.append(Color(lab=(light, a, b), hex=to_hex(rgb), share=count / len(pixels)))
    return found


class FakeColor(FakeCompute):
    """The stand-in; `app()` serves it."""

    slots = ("palette",)

    def add_routes(self, app: FastAPI) -> None:
        """Add `POST /v1/palettes`, `/v1/blend` and `/v1/collage`."""

        @app.post("/v1/palettes")
        async def palettes(request: Request) -> Palettes:
            pictures = await self.take(request, "palette", most=MAX_IMAGES)
            items = [self._item(data) for data in pictures]
            return Palettes(model="fake palette", fingerprint=self.fingerprint("palette"), items=items)

        @app.post("/v1/blend")
        async def blend(request: Request) -> Response:
            (first,) = await self.take(request, "palette", "image_1")
            options = BlendOptions.model_validate(self.last_fields)
            one = decode(first)
            two = decode(self.last_files["image_2"][0]).resize(one.size)
            mask = Image.new("L", one.size, 0)
            if "mask" in self.last_files:
                mask = decode(self.last_files["mask"][0]).convert("L").resize(one.size)
            else:
                seam = round(options.position * (one.width if options.direction == "horizontal" else one.height))
                kept = (seam, one.height) if options.direction == "horizontal" else (one.width, seam)
                mask.paste(255, (0, 0, *kept))
            out = io.BytesIO()
            Image.composite(one, two, mask).save(out, "PNG")
            return Response(out.getvalue(), media_type="image/png")

        @app.post("/v1/collage")
        async def collage(request: Request) -> Response:
            pictures = await self.take(request, "palette", most=MAX_COLLAGE_IMAGES)
            options = CollageOptions.model_validate(self.last_fields)
            columns = options.columns or max(1, round(len(pictures) ** 0.5))
            rows = -(-len(pictures) // columns)
            step = options.cell_px + options.gap_px
            grid = Image.new("RGB", (columns * step, rows * step), options.background)
            for at, data in enumerate(pictures):
                cell = decode(data).resize((options.cell_px, options.cell_px))
                if at == 0 and options.frame_first:
                    ImageDraw.Draw(cell).rectangle((0, 0, *(side - 1 for side in cell.size)), outline="red", width=2)
                grid.paste(cell, (at % columns * step, at // columns * step))
            out = io.BytesIO()
            grid.save(out, options.format.upper())
            return Response(out.getvalue(), media_type=f"image/{options.format}")

    def _item(self, data: bytes) -> PaletteItem:
        try:
            return palette_of(data, int(self.last_query.get("colors", MAX_COLORS)))
        except PixelgateError as error:
            return PaletteItem(problem=error.to_problem())
