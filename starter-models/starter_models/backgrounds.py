"""Backgrounds: a named colour in one of six kinds, drawn at any size."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from starter_models.glyphs import LEVELS, glyph
from starter_models.labels import BACKGROUND_COLOURS, BACKGROUND_KINDS, LABELS


@dataclass(frozen=True)
class Background:
    """A background by its colour's name and its kind (keys of BACKGROUND_COLOURS and BACKGROUND_KINDS)."""

    colour: str
    kind: str


def choose_background(rng: Random) -> Background:
    """Draw a colour and a kind, each uniformly."""
    return Background(rng.choice(list(BACKGROUND_COLOURS)), rng.choice(list(BACKGROUND_KINDS)))


def draw_background(background: Background, width: int, height: int, rng: Random) -> Image.Image:
    """Return an RGB picture of ``width`` by ``height`` pixels; ``rng`` settles shade, direction and pattern."""
    base = _shade(background.colour, rng, 0.0)
    lighter = _shade(background.colour, rng, 0.16)
    darker = _shade(background.colour, rng, -0.16)
    angle = rng.uniform(0, 2 * math.pi)
    if background.kind == "plain":
        return Image.new("RGB", (width, height), _rgb8(base))
    if background.kind == "gradient":
        ramp = _ramp(width, height, angle)
        low, high = ramp.min(), ramp.max()
        return _mix(darker, lighter, (ramp - low) / (high - low))
    if background.kind == "stripes":
        period = rng.uniform(0.10, 0.30)
        ramp = _ramp(width, height, angle) / period + rng.random()
        wave = np.clip(np.sin(2 * math.pi * ramp) * rng.choice((1.0, 8.0)) * 0.5 + 0.5, 0, 1)
        return _mix(darker, lighter, wave)
    if background.kind == "noise":
        noise = np.random.default_rng(rng.getrandbits(64))
        grain = rng.choice((1.0, 1.6, 2.4)) * max(width, height) / 288
        small = (max(8, round(height / max(grain, 0.6))), max(8, round(width / max(grain, 0.6))))
        values = noise.integers(0, 256, small, dtype=np.uint8)
        field = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
        return _mix(darker, lighter, np.asarray(field, dtype=np.float32) / 255)
    if background.kind == "blobs":
        return _blobs(base, lighter, darker, width, height, rng)
    if background.kind == "blurred":
        return _blurred_scene(base, width, height, rng)
    raise ValueError(f"unknown background kind {background.kind!r}")


def _shade(colour: str, rng: Random, lightness: float) -> NDArray[np.float32]:
    """Return a shade of a named colour near its centre as RGB in 0–1; ``lightness`` shifts its value."""
    hue, saturation, value = BACKGROUND_COLOURS[colour]
    hue = (hue + rng.uniform(-5, 5)) % 360 / 360
    if saturation > 0:
        saturation = min(1.0, max(0.3, saturation + rng.uniform(-0.07, 0.07) - max(0.0, lightness) * 0.7))
    spread = 0.03 if saturation == 0 else 0.05
    value = min(1.0, max(0.0, value + rng.uniform(-spread, spread) + lightness * (0.75 if saturation else 0.55)))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)


def _rgb8(colour: NDArray[np.float32]) -> tuple[int, int, int]:
    red, green, blue = (round(float(channel) * 255) for channel in colour)
    return red, green, blue


def _ramp(width: int, height: int, angle: float) -> NDArray[np.float32]:
    """Distance along a direction, (height, width), in units of the longer side."""
    side = max(width, height)
    across = np.arange(width, dtype=np.float32) * (math.cos(angle) / side)
    down = np.arange(height, dtype=np.float32) * (math.sin(angle) / side)
    return down[:, None] + across[None, :]


def _mix(first: NDArray[np.float32], second: NDArray[np.float32], weight: NDArray[np.floating[Any]]) -> Image.Image:
    """Blend two colours by a (height, width) weight in 0–1."""
    table = (first + np.linspace(0, 1, 256, dtype=np.float32)[:, None] * (second - first)) * 255 + 0.5
    return Image.fromarray(table.astype(np.uint8)[(weight * 255).astype(np.uint8)])


def _blobs(
    base: NDArray[np.float32],
    lighter: NDArray[np.float32],
    darker: NDArray[np.float32],
    width: int,
    height: int,
    rng: Random,
) -> Image.Image:
    """Round spots, lighter and darker than the base colour."""
    picture = Image.new("RGB", (width, height), _rgb8(base))
    side = min(width, height)
    for _ in range(rng.randint(7, 16)):
        radius = rng.uniform(0.05, 0.16) * side
        size = max(3, round(2 * radius))
        spot = _disc().resize((size, size), Image.Resampling.BILINEAR)
        at = (round(rng.uniform(-radius, width - radius)), round(rng.uniform(-radius, height - radius)))
        picture.paste(_rgb8(lighter if rng.random() < 0.5 else darker), at, spot)
    return picture


@lru_cache(maxsize=1)
def _disc() -> Image.Image:
    """A soft-edged disc as an 8-bit mask."""
    away = np.hypot(*np.ogrid[-1:1:64j, -1:1:64j])
    return Image.fromarray((np.clip((1 - away) * 8, 0, 1) * 255).astype(np.uint8))


def _blurred_scene(base: NDArray[np.float32], width: int, height: int, rng: Random) -> Image.Image:
    """Large objects blurred beyond recognition, seen through a veil of the base colour."""
    small = (max(8, width // 4), max(8, height // 4))
    picture = Image.new("RGB", small, _rgb8(base))
    for _ in range(rng.randint(3, 6)):
        label = rng.choice(LABELS)
        bitmap = glyph(label.name, rng.choice(label.colours) if label.colours else None)[LEVELS.index(48)]
        side = rng.uniform(0.4, 0.9) * min(small)
        factor = side / max(bitmap.size)
        bitmap = bitmap.resize((max(2, round(bitmap.width * factor)), max(2, round(bitmap.height * factor))))
        at = (round(rng.uniform(-0.3, 0.8) * small[0]), round(rng.uniform(-0.3, 0.8) * small[1]))
        picture.paste(bitmap, at, bitmap)
    picture = picture.filter(ImageFilter.GaussianBlur(max(small) * rng.uniform(0.05, 0.08)))
    veil = Image.new("RGB", small, _rgb8(base))
    return Image.blend(picture, veil, rng.uniform(0.6, 0.72)).resize((width, height), Image.Resampling.BICUBIC)
