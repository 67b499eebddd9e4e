"""Boxes and labels drawn on a picture, to be read on any picture at any size."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont
from pixelgate_common.contracts.detect import Box

_JPEG_QUALITY = 90
_MAX_LABEL_CHARS = 40
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
Color = tuple[int, int, int]


def color_of(label: str) -> Color:
    """Return the label's colour, the same in every picture and process: a hue by its digest, saturated and bright."""
    digest = hashlib.sha256(label.encode()).digest()
    # Steps of the golden ratio spread hues evenly however the digests fall; two levels of brightness double them.
    hue = int.from_bytes(digest[:4], "big") * 0.618033988749895 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0 if digest[4] & 1 else 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def annotate(picture: Image.Image, objects: Sequence[Box], measured_in: tuple[int, int]) -> bytes:
    """Return a JPEG of `picture` (mode RGB) with `objects` drawn on it, the surest on top.

    `measured_in` is the width and height of the picture that the boxes are measured in; they are scaled to this one
    and clipped into it. The picture is not changed.
    """
    canvas = picture.copy()
    draw = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    line_px = max(1, round(side / 220))
    font_px = max(10, min(64, round(side / 28)))
    scale_x, scale_y = canvas.width / measured_in[0], canvas.height / measured_in[1]
    order = sorted(objects, key=lambda one: one.score)
    frames = [_frame(one, scale_x, scale_y, canvas.size) for one in order]
    for one, frame in zip(order, frames, strict=True):
        _draw_frame(draw, frame, color_of(one.label), line_px)
    # All names after all frames: a frame through a name makes it unreadable.
    for one, frame in zip(order, frames, strict=True):
        _draw_name(draw, frame, one, font_px, line_px, canvas.size)
    file = BytesIO()
    canvas.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _frame(one: Box, scale_x: float, scale_y: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y, width, height = one.box
    left, top = _into(x * scale_x, size[0]), _into(y * scale_y, size[1])
    return left, top, max(left, _into((x + width) * scale_x, size[0])), max(top, _into((y + height) * scale_y, size[1]))


def _into(value: float, size: int) -> int:
    return int(min(max(value, 0.0), size - 1.0)) if value == value else 0


def _draw_frame(draw: ImageDraw.ImageDraw, frame: tuple[int, int, int, int], color: Color, line_px: int) -> None:
    # A dark and a light hairline around the colour: one of them shows on any background.
    left, top, right, bottom = frame
    thin = max(1, line_px // 2)
    for grow, paint, width in ((thin, _BLACK, line_px + 2 * thin), (0, color, line_px), (-line_px, _WHITE, thin)):
        box = (left - grow, top - grow, right + grow, bottom + grow)
        if box[2] - box[0] >= 0 and box[3] - box[1] >= 0:
            draw.rectangle(box, outline=paint, width=width)


def _draw_name(
    draw: ImageDraw.ImageDraw,
    frame: tuple[int, int, int, int],
    one: Box,
    font_px: int,
    line_px: int,
    size: tuple[int, int],
) -> None:
    color = color_of(one.label)
    label, pad = _printable(one.label), max(2, line_px)
    font = _font(font_px, label.isascii())
    text = f"{label} {one.score:.0%}"
    while len(label) > 3 and draw.textlength(text, font=font) > size[0] - 2 * pad:
        label = label[:-2] + "…"
        text = f"{label} {one.score:.0%}"
    x1, y1, x2, y2 = (round(edge) for edge in draw.textbbox((0, 0), text, font=font))
    width, height = x2 - x1 + 2 * pad, y2 - y1 + 2 * pad
    left = max(0, min(frame[0], size[0] - width))
    # Above the frame where there is room, else inside it.
    top = frame[1] - height if frame[1] >= height else min(frame[1], max(0, size[1] - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color, outline=_BLACK)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    draw.text((left + pad - x1, top + pad - y1), text, font=font, fill=_BLACK if luminance > 140 else _WHITE)


def _printable(label: str) -> str:
    """Return the label in one line without control characters; what the font lacks shows as an empty box."""
    text = "".join(char if char.isprintable() else " " for char in label).strip()
    return text if len(text) <= _MAX_LABEL_CHARS else text[: _MAX_LABEL_CHARS - 1] + "…"


@lru_cache(maxsize=32)
def _font(size_px: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    if not ascii_only:
        with suppress(OSError):  # with more letters than Pillow's own, where this machine has it
            return ImageFont.truetype("DejaVuSans.ttf", size_px)
    font = ImageFont.load_default(size_px)  # Pillow's own Aileron: no font file of this machine is needed
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
