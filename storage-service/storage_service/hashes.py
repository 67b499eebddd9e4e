"""Two summaries of how a picture looks: a perceptual hash to find near-duplicates, a ThumbHash to show at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

PHASH_SIDE_PX = 32
THUMBHASH_SIDE_PX = 100
"""The longest side that a ThumbHash may be computed from."""

Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]


def perceptual_hash(luma: Pixels) -> int:
    """Return 64 bits as a signed integer: which of the 8 × 8 lowest DCT frequencies lie over their median.

    `luma` has shape (32, 32), 0 to 255. The first bit (highest) is the constant term, then row by row. Two pictures
    look alike when few of their bits differ. Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions" (2010), section 3.2.1. ValueError for another shape.
    """
    if luma.shape != (PHASH_SIDE_PX, PHASH_SIDE_PX):
        raise ValueError(f"shape (32, 32) is needed, not {luma.shape}")
    basis = _cosines(PHASH_SIDE_PX, 8)
    low = basis @ luma.astype(np.float64) @ basis.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def thumbhash(rgba: Pixels) -> bytes:
    """Return the ThumbHash of `rgba`, shape (h, w, 4), 0 to 255, alpha not premultiplied, both sides at most 100.

    5 bytes of averages and scales (6 with transparency), then 4 bits for each DCT coefficient. Source: Evan Wallace,
    "ThumbHash: a very compact representation of an image placeholder" (2023). ValueError for another shape.
    """
    if rgba.ndim != 3 or rgba.shape[2] != 4 or not min(rgba.shape[:2]) >= 1 or max(rgba.shape[:2]) > THUMBHASH_SIDE_PX:
        raise ValueError(f"shape (h, w, 4) with sides of 1 to 100 is needed, not {rgba.shape}")
    height, width = rgba.shape[:2]
    pixels = rgba.astype(np.float64) / 255
    color, alpha = pixels[..., :3], pixels[..., 3:]
    total = alpha.sum()
    average = (color * alpha).sum(axis=(0, 1)) / total if total else np.zeros(3)
    red, green, blue = np.moveaxis(average * (1 - alpha) + alpha * color, 2, 0)
    has_alpha, landscape = bool(total < width * height), width > height

    longest, limit = max(width, height), 5 if has_alpha else 7
    nx, ny = (max(1, _round(limit * side / longest)) for side in (width, height))
    l_dc, l_ac, l_scale = _channel((red + green + blue) / 3, max(3, nx), max(3, ny))
    p_dc, p_ac, p_scale = _channel((red + green) / 2 - blue, 3, 3)
    q_dc, q_ac, q_scale = _channel(red - green, 3, 3)
    varying = [*l_ac, *p_ac, *q_ac]

    head = (
        _round(63 * l_dc)
        | _round(31.5 + 31.5 * p_dc) << 6
        | _round(31.5 + 31.5 * q_dc) << 12
        | _round(31 * l_scale) << 18
        | has_alpha << 23
    )
    shape = (ny if landscape else nx) | _round(63 * p_scale) << 3 | _round(63 * q_scale) << 9 | landscape << 15
    found = bytearray(head.to_bytes(3, "little") + shape.to_bytes(2, "little"))
    if has_alpha:
        a_dc, a_ac, a_scale = _channel(alpha[..., 0], 5, 5)
        varying += a_ac
        found.append(_round(15 * a_dc) | _round(15 * a_scale) << 4)
    nibbles = [_round(15 * value) for value in varying] + [0] * (len(varying) % 2)
    found += bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return bytes(found)


def _channel(channel: _Floats, nx: int, ny: int) -> tuple[float, list[float], float]:
    """Return the mean, the lower triangle of `nx` × `ny` DCT terms scaled to [0, 1], and their largest magnitude."""
    height, width = channel.shape
    terms = _cosines(height, ny) @ channel @ _cosines(width, nx).T / (width * height)
    values = [float(terms[cy, cx]) for cy in range(ny) for cx in range(nx) if cx * ny < nx * (ny - cy)]
    mean, varying = values[0], values[1:]
    scale = max((abs(value) for value in varying), default=0.0)
    return mean, [0.5 + 0.5 / scale * value for value in varying] if scale else varying, scale


@cache
def _cosines(length: int, count: int) -> _Floats:
    """Return the first `count` cosine waves over `length` samples, shape (count, length)."""
    basis: _Floats = np.cos(np.pi / length * np.outer(np.arange(count), np.arange(length) + 0.5))
    return basis


def _round(value: float) -> int:
    """Round halves up, as the published algorithm's language does (Python rounds them to even)."""
    return int(np.floor(value + 0.5))
