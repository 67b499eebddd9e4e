"""Colours as people see them: sRGB and CIELAB (D65), the CIEDE2000 difference, complements, and distances of palettes.

Everything is a pure function of numpy arrays; no input is changed. Palettes are compared in two ways: exactly
(`palette_distances`), and by look-up in a table of 32,768 cells (`ColorTable`), which finds the candidates that are
worth ranking exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageColor

from pixelgate_common.contracts.color import MIN_SHARE

Floats = npt.NDArray[Any]
"""An array of float32 or float64."""
Labs = npt.NDArray[np.float32]
Rgb = tuple[int, int, int]

EMPTY_CODE = 32768
"""The code of a place in a palette that has no colour, or one whose share does not count."""
GREY_SPREAD = 10
"""Colours whose channels differ by less than this (of 255) have no hue of their own: a rounding by one level would turn
it by more than 6°, and their chroma (C* below about 5) is what people call grey."""

_CODES = 32768
_CHUNK = 32768  # colours at a time: with fewer the calls cost more, with more the arrays leave the caches
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_RGB = np.linalg.inv(_TO_XYZ)
_WHITE = _TO_XYZ.sum(axis=1)  # so that greys have a* = b* = 0, whatever the matrix was rounded to
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27


def srgb_to_lab(rgb: npt.ArrayLike) -> Floats:
    """Return CIELAB (D65, 2°) of sRGB colours: (…, 3) in [0, 255] to (…, 3) with L* in [0, 100], a*, b* about ±128.

    uint8 and float32 give float32, float64 gives float64. IEC 61966-2-1, CIE 15:2004 with exact ε and κ.
    """
    given = np.asarray(rgb)
    levels = given.astype(np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((np.maximum(levels, 0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > _EPSILON, np.cbrt(xyz), (_KAPPA * xyz + 16) / 116), -1, 0)
    lab = np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)
    return lab if given.dtype == np.float64 else lab.astype(np.float32)


def lab_to_srgb(lab: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return the sRGB colours (…, 3) of CIELAB (D65) ones (…, 3); what no screen can show is clipped by channel."""
    values = np.asarray(lab, dtype=np.float64)
    y = (values[..., 0] + 16) / 116
    roots = np.stack((y + values[..., 1] / 500, y, y - values[..., 2] / 200), axis=-1)
    cubes = roots**3
    xyz = np.where(cubes > _EPSILON, cubes, (116 * roots - 16) / _KAPPA) * _WHITE
    linear = np.clip(xyz @ _TO_RGB.T, 0, 1)
    levels = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rounded: npt.NDArray[np.uint8] = np.rint(levels * 255).astype(np.uint8)
    return rounded


def parse_color(text: str) -> Rgb:
    """Return the sRGB colour that `#rrggbb`, `#rgb` or a CSS colour name means; ValueError when it is neither."""
    name = text.strip().lower()
    if not re.fullmatch(r"#(?:[0-9a-f]{3}|[0-9a-f]{6})", name) and name not in ImageColor.colormap:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise ValueError(f"{shown!r} is no colour: write #rrggbb, #rgb or a CSS colour name such as teal.")
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


def to_hex(rgb: Sequence[int] | npt.NDArray[Any]) -> str:
    """Return `#rrggbb` of an sRGB colour of three levels from 0 to 255."""
    red, green, blue = (int(level) for level in rgb)
    return f"#{red:02x}{green:02x}{blue:02x}"


def complement(rgb: Sequence[int] | npt.NDArray[Any]) -> Rgb | None:
    """Return the colour with its hue turned by 180° in HSV, saturation and value kept; None for greys (GREY_SPREAD).

    Half a turn maps each channel x to max + min - x, which is exact in whole numbers.
    """
    red, green, blue = (int(level) for level in rgb)
    most, least = max(red, green, blue), min(red, green, blue)
    if most - least < GREY_SPREAD:
        return None
    return most + least - red, most + least - green, most + least - blue


def ciede2000(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Return the colour difference CIEDE2000 (k_L = k_C = k_H = 1) of CIELAB arrays (…, 3) that broadcast, as (…).

    Two float32 arrays give float32, anything else float64; symmetric to the last bit. Source: G. Sharma, W. Wu,
    E. N. Dalal, "The CIEDE2000 Color-Difference Formula", Color Research and Application 30 (2005) 21-30, whose 34
    pairs it matches. Hues are kept as vectors: the mean hue and half the difference come from their sum and difference,
    with no trigonometry but for the rotation term.
    """
    one, two = np.asarray(first), np.asarray(second)
    if one.shape[-1:] != (3,) or two.shape[-1:] != (3,):
        raise ValueError(f"CIELAB arrays of shape (…, 3) are needed, not {one.shape} and {two.shape}.")
    dtype = np.float32 if one.dtype == two.dtype == np.float32 else np.float64
    one, two = one.astype(dtype, copy=False), two.astype(dtype, copy=False)
    return np.asarray(_ciede2000(_channels(one), _channels(two)))


_Channels = tuple[Floats, Floats, Floats, Floats]


def _channels(lab: Floats) -> _Channels:
    """Return L*, a*, b* and the chroma C*, each of shape (…) and contiguous."""
    light, a, b = (lab[..., i].copy() for i in range(3))
    return light, a, b, np.sqrt(a * a + b * b)


def _chroma_weight(double: Floats) -> Floats:
    """Return sqrt(C⁷ / (C⁷ + 25⁷)), in [0, 1), of twice the chroma."""
    square = double * double
    seventh = square * square
    seventh *= square
    seventh *= double
    weight: Floats = np.sqrt(seventh / (seventh + 50.0**7))
    return weight


def _polynomial(x: Floats, *factors: float) -> Floats:
    """Return the polynomial of `x` with these factors, the highest power's first."""
    total = x * factors[0]
    for factor in factors[1:-1]:
        total += factor
        total *= x
    total += factors[-1]
    return total


def _ciede2000(first: _Channels, second: _Channels) -> Floats:
    (l1, a1, b1, c1), (l2, a2, b2, c2) = first, second
    tiny = float(np.finfo(c1.dtype).tiny)

    scale = 1.5 - 0.5 * _chroma_weight(c1 + c2)  # 1 + G
    a1, a2 = a1 * scale, a2 * scale
    c1, c2 = np.sqrt(a1 * a1 + b1 * b1), np.sqrt(a2 * a2 + b2 * b2)
    double_c, product = c1 + c2, np.maximum(c1 * c2, tiny)

    # The sum and the difference of the hues' unit vectors, both times C'1 C'2: the sum points to the mean hue, and the
    # difference is as long as 2 sin(Δh' / 2). Where a colour has no chroma, no term with a hue is left.
    x1, x2, y1, y2 = a1 * c2, a2 * c1, b1 * c2, b2 * c1
    x_sum, y_sum, x_diff, y_diff = x1 + x2, y1 + y2, x2 - x1, y2 - y1
    sum_square, diff_square = x_sum * x_sum + y_sum * y_sum, x_diff * x_diff + y_diff * y_diff
    turn = a1 * b2 - a2 * b1  # above 0 where the shorter way from the first hue to the second is a left turn
    opposite = sum_square < 1e-4 * diff_square
    if np.any(opposite):
        x_sum, y_sum, turn = _across(opposite, (x1, y1), (x_diff, y_diff), turn, (x_sum, y_sum))
        sum_square = x_sum * x_sum + y_sum * y_sum

    # The mean hue less 180°, so that arctan2 gives one interval for 0° to 360°.
    inverse = -1 / np.sqrt(np.maximum(sum_square, tiny))
    cos, sin = x_sum * inverse, y_sum * inverse
    t = _polynomial(cos, *_T_COS) + _polynomial(cos, *_T_SIN) * sin
    from_blue = np.arctan2(sin, cos) - _BLUE
    rotation = np.sin(_60_DEGREES * np.exp(from_blue * from_blue * _SPREAD)) * _chroma_weight(double_c)

    d_hue = np.copysign(np.sqrt(diff_square / product), turn) / (1 + 0.0075 * double_c * t)
    d_chroma = (c2 - c1) / (1 + 0.0225 * double_c)
    light = l1 + l2 - 100
    light *= light
    d_light = (l2 - l1) / (1 + 0.0075 * light / np.sqrt(80 + light))
    # The rotation's factor is below 2, so the total is never negative but by rounding.
    total = d_light * d_light + d_hue * d_hue + (d_chroma - 2 * rotation * d_hue) * d_chroma
    difference: Floats = np.sqrt(np.maximum(total, 0))
    return difference


_Vectors = tuple[Floats, Floats]


def _across(where: Floats, first: _Vectors, diff: _Vectors, turn: Floats, mean: _Vectors) -> tuple[Floats, ...]:
    """Return mean hue (x, y) and turn, made anew where hues are so close to opposite that their sum says nothing.

    There the mean hue lies across the difference. Hues exactly opposite have two; the paper takes the mean of the
    angles in [0°, 360°), so the smaller angle is the one to turn left from.
    """
    (x1, y1), (x_diff, y_diff) = first, diff
    smaller = (y1 > 0) | ((y1 == 0) & (x1 > 0))
    turn = np.where(where & (turn == 0), np.where(smaller, turn.dtype.type(1), turn.dtype.type(-1)), turn)
    return (
        np.where(where, np.copysign(y_diff, y_diff * turn), mean[0]),
        np.where(where, np.copysign(x_diff, -x_diff * turn), mean[1]),
        turn,
    )


def _t_factors() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return T of the paper as P(cos) + Q(cos) sin: the factors of P and Q for the mean hue less 180°.

    T = 1 - 0.17 cos(h - 30°) + 0.24 cos(2h) + 0.32 cos(3h + 6°) - 0.20 cos(4h - 63°), each cos(kh ± φ) taken apart and
    cos(kh), sin(kh) written in powers of cos(h); 180° less turns the sign of odd k.
    """
    angles = np.deg2rad([30, 0, -6, 63])
    strengths = np.array([0.17, 0.24, -0.32, -0.20])
    (k1, k2, k3, k4), (s1, s2, s3, s4) = strengths * np.cos(angles), strengths * np.sin(angles)
    p = (8 * k4, 4 * k3, 2 * k2 - 8 * k4, k1 - 3 * k3, 1 - k2 + k4)
    q = (8 * s4, 4 * s3, 2 * s2 - 4 * s4, s1 - s3)
    return tuple(map(float, p)), tuple(map(float, q))


_T_COS, _T_SIN = _t_factors()
_BLUE, _60_DEGREES = float(np.deg2rad(275 - 180)), float(np.deg2rad(60))
_SPREAD = -1 / float(np.deg2rad(25)) ** 2


def palette_distances(
    query_labs: npt.ArrayLike,
    weights: npt.ArrayLike,
    labs: npt.ArrayLike,
    shares: npt.ArrayLike,
    min_share: float = MIN_SHARE,
    *,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """Return how far each palette is from the query's colours, shape (n,), in units of CIEDE2000.

    The weighted mean over the query's colours (q, 3), `weights` (q,) positive, of the smallest CIEDE2000 to any of the
    palette's colours `labs` (n, c, 3) with a share (n, c) of at least `min_share`; unused places have share 0. A
    palette with no such colour is infinitely far. Exact in float32 (about 1e-4).
    `threads` help, because numpy releases the GIL.
    """
    colors, parts = np.asarray(labs, dtype=np.float32), np.asarray(shares, dtype=np.float32)
    queries, portions = _checked_query(query_labs, weights)
    if colors.ndim != 3 or colors.shape[2] != 3 or parts.shape != colors.shape[:2]:
        raise ValueError(f"labs (n, c, 3) and shares (n, c) are needed, not {colors.shape} and {parts.shape}.")
    distances = np.full(len(colors), np.inf, dtype=np.float32)
    step = max(1, _CHUNK // max(1, colors.shape[1]))

    def rank(start: int) -> None:
        rows = slice(start, start + step)
        distances[rows] = _chunk_distances(queries, portions, colors[rows], parts[rows] >= np.float32(min_share))

    starts = range(0, len(colors), step)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(rank, starts))
    else:
        for start in starts:
            rank(start)
    return distances


def _chunk_distances(
    queries: Labs, portions: npt.NDArray[np.float32], colors: Labs, counts: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the distances of a few palettes; only the colours that count (n, c) are compared."""
    per_row = counts.sum(axis=1)
    some = per_row > 0
    distances = np.full(len(colors), np.inf, dtype=np.float32)
    if some.any():
        channels = _channels(colors[counts])
        first_of_row = np.concatenate(([0], np.cumsum(per_row[some])[:-1]))
        total = np.zeros(len(first_of_row), dtype=np.float32)
        for query, portion in zip(queries, portions, strict=True):
            total += portion * np.minimum.reduceat(_ciede2000(_channels(query), channels), first_of_row)
        distances[some] = total
    return distances


def _checked_query(query_labs: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Labs, npt.NDArray[np.float32]]:
    """Return the query's colours and their weights, which add up to 1; ValueError when they cannot be."""
    queries, given = np.asarray(query_labs, dtype=np.float32), np.asarray(weights, dtype=np.float64)
    if queries.ndim != 2 or queries.shape[1] != 3 or given.shape != queries.shape[:1] or len(given) == 0:
        raise ValueError(f"query_labs (q, 3) and weights (q,) are needed, not {queries.shape} and {given.shape}.")
    if not (given > 0).all() or not np.isfinite(given.sum()):
        raise ValueError("weights must be positive numbers.")
    return queries, (given / given.sum()).astype(np.float32)


def encode_lab(labs: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Return the cell (…) of each CIELAB colour (…, 3): five bits for red, green and blue each, in [0, 32768)."""
    rgb = lab_to_srgb(labs).astype(np.uint16) >> 3
    return (rgb[..., 0] << 10 | rgb[..., 1] << 5 | rgb[..., 2]).astype(np.uint16, copy=False)


def encode_palettes(labs: npt.ArrayLike, shares: npt.ArrayLike, min_share: float = MIN_SHARE) -> npt.NDArray[np.uint16]:
    """Return palettes as `ColorTable` takes them: labs (n, c, 3), shares (n, c) to codes (c, n), contiguous.

    Places whose share is below `min_share` become EMPTY_CODE.
    """
    counts = np.asarray(shares, dtype=np.float32) >= np.float32(min_share)
    return np.ascontiguousarray(np.where(counts, encode_lab(labs), np.uint16(EMPTY_CODE)).T)


@cache
def _cell_channels() -> _Channels:
    codes = np.arange(_CODES)
    centres = np.stack((codes >> 10, codes >> 5 & 31, codes & 31), axis=-1) * 8 + 3.5
    return _channels(srgb_to_lab(centres).astype(np.float32))


class ColorTable:
    """Approximate distances of palettes to one query, by table look-up alone: the index that finds candidates.

    One table for each of the query's colours holds its CIEDE2000 to the centres of all 32,768 cells. A colour is at
    most 4.5 levels away from its cell's centre: on average 1, among the darkest and greyest up to 7 of a CIEDE2000.
    So take a few thousand of the closest and rank them with `palette_distances`.
    """

    def __init__(self, query_labs: npt.ArrayLike, weights: npt.ArrayLike) -> None:
        """Make the tables for colours (q, 3) with positive `weights` (q,): about half a millisecond each."""
        queries, portions = _checked_query(query_labs, weights)
        cells = _cell_channels()
        # Weighted here, once; the last cell is EMPTY_CODE's.
        self._tables = np.full((len(queries), _CODES + 1), np.inf, dtype=np.float32)
        for row, query, portion in zip(self._tables, queries, portions, strict=True):
            for start in range(0, _CODES, _CHUNK):
                part = slice(start, start + _CHUNK)
                row[part] = portion * _ciede2000(_channels(query), _part_of(cells, part))

    def distances(self, codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Return the approximate distance (n,) of palettes given as codes (c, n) of `encode_palettes`.

        A palette with nothing but EMPTY_CODE is infinitely far. Raises IndexError for a code above EMPTY_CODE.
        """
        places, count = codes.shape
        result = np.empty(count, dtype=np.float32)
        step = max(1, _CHUNK // max(1, places))
        for start in range(0, count, step):
            cells = codes[:, start : start + step].astype(np.intp)
            total = np.zeros(cells.shape[1], dtype=np.float32)
            for table in self._tables:
                total += table.take(cells).min(axis=0, initial=np.inf)
            result[start : start + step] = total
        return result


def _part_of(channels: _Channels, part: slice) -> _Channels:
    light, a, b, chroma = channels
    return light[part], a[part], b[part], chroma[part]
