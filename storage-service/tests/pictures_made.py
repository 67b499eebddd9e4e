"""Pictures made for the tests: good ones, odd ones, and files that are none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def scene(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    """A smooth picture with a red upper left and a blue lower right quarter, different for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    phase = rng.random(3) * 6
    pixels = np.stack(
        [128 + 60 * np.sin(x / (30 + 5 * c) + phase[c]) * np.cos(y / 40 + phase[c]) for c in range(3)], -1
    )
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    pixels[height // 2 :, width // 2 :] = (30, 30, 220)
    pixels[:8, :8] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(picture: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, width: int = 640, height: int = 480, **options: Any) -> bytes:
    return encoded(scene(width, height, seed), quality=90, **options)


def png_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few KB that says it has `width` × `height` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 3_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated_gif() -> bytes:
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def sixteen_bit_png() -> bytes:
    ramp = np.tile(np.linspace(0, 65535, 200, dtype=np.uint16), (100, 1))
    return encoded(Image.fromarray(ramp), "PNG")


def rotated_jpeg(orientation: int = 6) -> bytes:
    """400 × 200 as stored, the left half red, the right half blue."""
    picture = Image.new("RGB", (400, 200), (220, 30, 30))
    picture.paste((30, 30, 220), (200, 0, 400, 200))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, quality=95, exif=exif.tobytes())


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture
