"""Pictures made for the tests."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = tuple[int, int, int]
BLUE, WHITE, RED = (0, 85, 164), (255, 255, 255), (239, 65, 53)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def opened(data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of a picture file."""
    return np.asarray(Image.open(BytesIO(data)))


def plain(color: tuple[int, ...], size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of one colour, RGB or RGBA by its length."""
    return encoded(Image.new("RGBA" if len(color) == 4 else "RGB", size, color))


def stripes(size: tuple[int, int], *colors: Rgb) -> Image.Image:
    """Upright stripes, all equally wide but for rounding."""
    width, height = size
    row = np.array([colors[x * len(colors) // width] for x in range(width)], np.uint8)
    return Image.fromarray(np.broadcast_to(row, (height, width, 3)).copy())


def scenery(width: int, height: int, seed: int = 1) -> Image.Image:
    """A picture with structure of every size."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (max(1, height // k), max(1, width // k), 3), dtype=np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        for k in (2, 16, 64)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))
