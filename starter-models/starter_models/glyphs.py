"""Object pictures: the font's glyphs as premultiplied RGBA bitmaps, in several sizes and colours."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from starter_models.font import find_font
from starter_models.labels import BY_NAME

#: The one size, in pixels, at which the font carries its bitmaps.
BITMAP_SIZE = 109
#: Longer side of the bitmaps kept for each glyph, in pixels; the next larger one is scaled down when drawn.
LEVELS = (136, 96, 68, 48, 34, 24)
_PAINT_HUES = {"red": 0, "yellow": 35, "green": 92, "blue": 152, "purple": 200}


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(find_font()), BITMAP_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph(name: str, colour: str | None) -> tuple[Image.Image, ...]:
    """Return label ``name`` drawn in ``colour`` (None: the font's own), one RGBA bitmap per entry of LEVELS.

    Bitmaps are cropped to what is visible. Colours outside the label's own list are a ValueError.
    """
    label = BY_NAME[name]
    if colour is not None and colour not in label.colours:
        raise ValueError(f"a {name} is not drawn in {colour}")
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((12, 12), label.glyph, font=_font(), embedded_color=True)
    box = canvas.getchannel("A").point(lambda alpha: 255 if alpha > 24 else 0).getbbox()
    if box is None:
        raise ValueError(f"the font has no glyph for {name} (U+{ord(label.glyph):X})")
    drawn = canvas.crop(box)
    if colour is not None:
        drawn = _paint(drawn, colour, bodywork=name == "bus")
    factors = [level / max(drawn.size) for level in LEVELS]
    return tuple(
        drawn.resize((max(1, round(drawn.width * f)), max(1, round(drawn.height * f))), Image.Resampling.LANCZOS)
        for f in factors
    )


def _paint(drawn: Image.Image, colour: str, *, bodywork: bool) -> Image.Image:
    """Give every strongly coloured pixel the hue of ``colour``; greys stay, except the light ones of bodywork."""
    alpha = drawn.getchannel("A")
    hsv = np.array(drawn.convert("RGB").convert("HSV"))
    strong = hsv[..., 1] > 90
    if bodywork:
        strong = (hsv[..., 1] < 70) & (hsv[..., 2] > 130)
        hsv[..., 1] = np.where(strong, 205, hsv[..., 1])
    hsv[..., 0] = np.where(strong, _PAINT_HUES[colour], hsv[..., 0])
    if colour == "yellow":
        # Yellow reads as yellow only when it is bright; the same value in red would look brown.
        hsv[..., 2] = np.where(strong, np.minimum(255, 110 + 0.62 * hsv[..., 2]), hsv[..., 2]).astype(np.uint8)
    painted = Image.fromarray(hsv, "HSV").convert("RGB")
    painted.putalpha(alpha)
    return painted
