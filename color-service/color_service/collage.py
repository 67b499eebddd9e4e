"""Many pictures as one: a grid, row by row, each picture whole in its cell, the first in a frame on request."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw
from pixelgate_common.colors import parse_color
from pixelgate_common.contracts.color import CollageOptions
from pixelgate_common.errors import InvalidRequest
from pixelgate_common.images import DecodeLimits, decode, inspect


def grid(count: int, options: CollageOptions, max_pixels: int) -> tuple[int, int]:
    """Return the columns and rows for `count` pictures: those asked for, else as square as can be.

    Raises `InvalidRequest` (422) when the collage would have more than `max_pixels`.
    """
    columns = min(count, options.columns or ceil(sqrt(count)))
    rows = ceil(count / columns)
    width, height = _size(columns, rows, options)
    if width * height > max_pixels:
        raise InvalidRequest(
            f"The collage would have {width} × {height} pixels; at most {max_pixels} are made: ask for less.",
            field="cell_px",
        )
    return columns, rows


def in_cell(data: bytes, options: CollageOptions, limits: DecodeLimits, *, framed: bool = False) -> Image.Image:
    """Return a picture file as large as fits whole into a cell, on the background where it is transparent.

    A framed one is a little smaller, with the frame around it. Raises as `pixelgate_common.images.decode` does.
    """
    transparent = inspect(data, limits).has_alpha
    picture = decode(data, limits, mode="RGBA" if transparent else "RGB", max_side_px=options.cell_px)
    frame_px = max(2, options.cell_px // 25) if framed else 0
    room_px = options.cell_px - 2 * frame_px
    scale = room_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    tile = Image.new(
        "RGB",
        (size[0] + 2 * frame_px, size[1] + 2 * frame_px),
        parse_color(options.frame_color if framed else options.background),
    )
    if framed:
        ImageDraw.Draw(tile).rectangle(
            (frame_px, frame_px, frame_px + size[0] - 1, frame_px + size[1] - 1), fill=parse_color(options.background)
        )
    tile.paste(picture, (frame_px, frame_px), mask=picture if transparent else None)
    return tile


def collage(tiles: Sequence[Image.Image], columns: int, rows: int, options: CollageOptions) -> Image.Image:
    """Return the tiles of `in_cell` in the middle of their cells, with `gap_px` between and around the cells."""
    picture = Image.new("RGB", _size(columns, rows, options), parse_color(options.background))
    pitch = options.cell_px + options.gap_px
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left = options.gap_px + column * pitch + (options.cell_px - tile.width) // 2
        top = options.gap_px + row * pitch + (options.cell_px - tile.height) // 2
        picture.paste(tile, (left, top))
    return picture


def _size(columns: int, rows: int, options: CollageOptions) -> tuple[int, int]:
    pitch = options.cell_px + options.gap_px
    return columns * pitch + options.gap_px, rows * pitch + options.gap_px
