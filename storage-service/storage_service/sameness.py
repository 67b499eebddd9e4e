"""Whether two pictures are one, encoded, resized or slightly cropped anew: decided by their pixels over each other.

1. Coarsely: one picture at many scales over the other at many offsets, on 32 pixels, by normalised correlation.
2. Exactly: scale and offset of both axes by Gauss-Newton steps on 48, then 96 pixels (B. D. Lucas, T. Kanade, "An
   Iterative Image Registration Technique", IJCAI 1981).
3. The verdict: over what both show, the correlation, the mean difference, and the worst block. The worst block is what
   tells two pictures of one thing apart: whatever moved, came or went is a block that differs.

Works on the stored small files; all functions are pure, in sRGB levels (0 to 255).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips
from pixelgate_common.images import BrokenImage

METHOD = "pixels:1"
"""Names this method in what is stored; a change that changes verdicts gets another number."""
SIDE_PX = 96
LEAST_OVERLAP = 0.7
"""Of each side of both pictures, the part that both must show: a crop takes at most 15 % at each edge."""
LEAST_CORRELATION = 0.985
MOST_MEAN, MOST_WORST = 4.0, 14.0
"""Largest mean difference, over all and over the worst block, in levels."""
WORST_BASE, WORST_PER_MEAN = 5.0, 3.0
"""The worst block may also differ by at most WORST_BASE + WORST_PER_MEAN times the mean: coding leaves its traces
everywhere, an edit in one place."""
MOST_STRETCH = 0.08
"""By how much one side may be stretched against the other (the logarithm of the ratio)."""
FLAT = 4.0
"""A standard deviation below which there is nothing to lay over each other."""
FLAT_MEAN, FLAT_WORST = 2.0, 5.0
_COARSE_PX, _LEAST_COARSE = 32, 0.6
_SCALES = np.geomspace(LEAST_OVERLAP * 0.97, 1 / (LEAST_OVERLAP * 0.97), 21)
_BLOCK_PX = 6
_GREY = np.array([0.299, 0.587, 0.114], np.float32)

Plane = npt.NDArray[np.float32]
_Warp = tuple[float, float, float, float]
"""(sx, sy, tx, ty): the pixel centre (x, y) of one picture lies at (sx x + tx, sy y + ty) of the other."""
_IDENTITY: _Warp = (1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Look:
    """A picture made small: `rgb` (h, w, 3) with a longer side of at most SIDE_PX, and its luma (h, w)."""

    rgb: Plane
    grey: Plane


@dataclass(frozen=True)
class Verdict:
    """How alike two pictures are where both show something; `score` in [0, 1] is their correlation (1 where flat)."""

    same: bool
    score: float
    mean: float
    worst: float


_NO = Verdict(False, 0.0, 255.0, 255.0)


def look(data: bytes) -> Look:
    """Read a stored file; what is transparent is laid on middle grey. BrokenImage when it cannot be read."""
    try:
        image = pyvips.Image.thumbnail_buffer(data, SIDE_PX, height=SIDE_PX, size="down", fail_on="error")
        if image.hasalpha():
            image = image.flatten(background=[128, 128, 128])
        if image.bands < 3:
            image = image.colourspace("srgb")
        raw = np.frombuffer(image.write_to_memory(), np.uint8).reshape(image.height, image.width, image.bands)
    except pyvips.Error as error:
        raise BrokenImage("A stored file cannot be read.") from error
    return of_pixels(raw[..., :3])


def of_pixels(rgb: npt.NDArray[Any]) -> Look:
    """Return the look of pixels (h, w, 3), 0 to 255, that are small already; a little blurred, against aliasing."""
    soft = _soft(rgb.astype(np.float32))
    return Look(soft, soft @ _GREY)


def compare_files(one: bytes, others: Sequence[bytes]) -> list[Verdict]:
    """Compare one stored file with several; one that cannot be read is the same as none."""
    first = look(one)
    found = []
    for other in others:
        try:
            found.append(compare(first, look(other)))
        except BrokenImage:
            found.append(_NO)
    return found


def compare(first: Look, second: Look) -> Verdict:
    """Say whether the two looks are of one picture."""
    (h1, w1), (h2, w2) = first.grey.shape, second.grey.shape
    if min(h1, w1, h2, w2) < 4:
        # A strip or a dot: too few pixels to lay over each other anyhow but exactly.
        return _verdict(first, second, _whole(first, second)) if abs(w1 * h2 - w2 * h1) <= max(w1, w2) else _NO
    flat = min(float(first.grey.std()), float(second.grey.std())) < FLAT
    # The commonest case first: nothing cropped.
    if abs(np.log((w1 * h2) / (w2 * h1))) < 0.06:
        warp = _whole(first, second)
        verdict = _verdict(first, second, warp if flat else _refined(first, second, warp))
        if verdict.same or flat:
            return verdict
    if flat:
        return _NO
    coarse = _coarse(first, second)
    return _NO if coarse is None else _verdict(first, second, _refined(first, second, coarse))


def _whole(first: Look, second: Look) -> _Warp:
    (h1, w1), (h2, w2) = first.grey.shape, second.grey.shape
    return _placed(w2 / w1, h2 / h1, 0.0, 0.0)


def _placed(sx: float, sy: float, left: float, top: float) -> _Warp:
    """Return the warp between pixel centres of one between edges: (x, y) lies at (sx x + left, sy y + top)."""
    return sx, sy, left + 0.5 * sx - 0.5, top + 0.5 * sy - 0.5


def _verdict(first: Look, second: Look, warp: _Warp) -> Verdict:
    """Compare the pixels that both show under `warp`."""
    (h1, w1), (h2, w2) = first.grey.shape, second.grey.shape
    sx, sy, tx, ty = warp
    if sx <= 0 or sy <= 0:
        return _NO
    # A resize keeps the ratio of the sides, but for the rounding of the shorter one.
    if not 0.5 < sx * w1 / w2 < 2 or abs(np.log(sx / sy)) > MOST_STRETCH + 1 / min(h1, w1, h2, w2):
        return _NO
    # What both show, in the first one's pixels; half a pixel at each edge is a mixture with what lies outside.
    left, right = max(0.0, -tx / sx), min(w1 - 1.0, (w2 - 1 - tx) / sx)
    top, bottom = max(0.0, -ty / sy), min(h1 - 1.0, (h2 - 1 - ty) / sy)
    across, down = (right - left + 1), (bottom - top + 1)
    parts = (across / w1, down / h1, across * sx / w2, down * sy / h2)
    if min(parts) < LEAST_OVERLAP:
        return _NO
    x = np.arange(int(np.ceil(left)), int(np.floor(right)) + 1)
    y = np.arange(int(np.ceil(top)), int(np.floor(bottom)) + 1)
    here = first.rgb[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    there = _sampled(second.rgb, sx * x + tx, sy * y + ty)
    mean, worst = _differences(here, there)
    grey_here, grey_there = here @ _GREY, there @ _GREY
    spread = float(grey_here.std()), float(grey_there.std())
    if min(spread) < FLAT:
        uncropped = min(parts) > 0.97
        return Verdict(uncropped and mean <= FLAT_MEAN and worst <= FLAT_WORST, 1.0, mean, worst)
    correlation = float(
        ((grey_here - grey_here.mean()) * (grey_there - grey_there.mean())).mean() / (spread[0] * spread[1])
    )
    most_worst = min(MOST_WORST, WORST_BASE + WORST_PER_MEAN * mean)
    same = correlation >= LEAST_CORRELATION and mean <= MOST_MEAN and worst <= most_worst
    return Verdict(same, max(0.0, min(1.0, correlation)), mean, worst)


def _differences(here: Plane, there: Plane) -> tuple[float, float]:
    """Return the mean absolute difference, of all and of the worst block."""
    difference = np.abs(here - there).mean(axis=2)
    height, width = difference.shape
    rows, columns = max(1, height // _BLOCK_PX), max(1, width // _BLOCK_PX)
    # Blocks that share the rest among them, so that none is cut short.
    row_edges = np.linspace(0, height, rows + 1).astype(int)[:-1]
    column_edges = np.linspace(0, width, columns + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(difference, row_edges, axis=0), column_edges, axis=1)
    counts = np.outer(np.diff(np.append(row_edges, height)), np.diff(np.append(column_edges, width)))
    return float(difference.mean()), float((sums / counts).max())


def _coarse(first: Look, second: Look) -> _Warp | None:
    """Return the warp with the best correlation on few pixels, or None when there is no good one."""
    one, other = _shrunk(first.grey, _COARSE_PX), second.grey
    h1, w1 = one.shape
    longest = max(other.shape)
    best, found = _LEAST_COARSE, None
    for scale in _SCALES:
        side = _COARSE_PX * scale / longest
        h2, w2 = (max(3, round(length * side)) for length in other.shape)
        two = _resized(other, h2, w2)
        correlations = _correlations(one, two)
        at = np.unravel_index(int(np.argmax(correlations)), correlations.shape)
        if correlations[at] > best:
            best = float(correlations[at])
            dy, dx = int(at[0]) - (h2 - 1), int(at[1]) - (w2 - 1)  # where the second one's corner lies in the first
            # From coarse pixels of the first to full pixels of the second, edge to edge.
            to_x, to_y = other.shape[1] / w2, other.shape[0] / h2
            from_x, from_y = w1 / first.grey.shape[1], h1 / first.grey.shape[0]
            found = _placed(from_x * to_x, from_y * to_y, -dx * to_x, -dy * to_y)
    return found


def _correlations(one: Plane, two: Plane) -> Plane:
    """Return the normalised correlation at each offset (h1 + h2 - 1, w1 + w2 - 1); -1 where too little overlaps."""
    (h1, w1), (h2, w2) = one.shape, two.shape
    height, width = h1 + h2 - 1, w1 + w2 - 1
    a, b = one - one.mean(), two - two.mean()
    size = (_fast(height), _fast(width))
    products = np.fft.irfft2(np.fft.rfft2(a, size) * np.fft.rfft2(b[::-1, ::-1], size), size)[:height, :width]
    dy, dx = np.arange(height) - (h2 - 1), np.arange(width) - (w2 - 1)
    top, bottom, left, right = np.maximum(0, dy), np.minimum(h1, dy + h2), np.maximum(0, dx), np.minimum(w1, dx + w2)
    across, down = right - left, bottom - top
    count = np.outer(down, across).astype(np.float64)
    sum_a, square_a = _box_sums(a, top, bottom, left, right)
    sum_b, square_b = _box_sums(b, top - dy, bottom - dy, left - dx, right - dx)
    spread = (square_a - sum_a**2 / count) * (square_b - sum_b**2 / count)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (products - sum_a * sum_b / count) / np.sqrt(spread)
    enough = np.outer((down >= 0.65 * h1) & (down >= 0.65 * h2), (across >= 0.65 * w1) & (across >= 0.65 * w2)) & (
        spread > (1e-3 * count) ** 2
    )
    return np.where(enough, found, -1.0).astype(np.float32)


def _box_sums(plane: Plane, top: Any, bottom: Any, left: Any, right: Any) -> tuple[Any, Any]:
    """Return the sums of values and of squares over boxes [top, bottom) x [left, right), each (rows, columns)."""
    found = []
    for values in (plane, plane * plane):
        total = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1))
        total[1:, 1:] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
        upper, lower = total[top], total[bottom]
        found.append(lower[:, right] - lower[:, left] - upper[:, right] + upper[:, left])
    return found[0], found[1]


def _refined(first: Look, second: Look, warp: _Warp) -> _Warp:
    """Return `warp` after Gauss-Newton steps towards the least difference, on half the pixels first."""
    (h1, w1), (h2, w2) = first.grey.shape, second.grey.shape
    for side, steps in ((SIDE_PX // 2, 8), (SIDE_PX, 6)):
        one, two = _shrunk(first.grey, side), _shrunk(second.grey, side)
        fx, fy, gx, gy = one.shape[1] / w1, one.shape[0] / h1, two.shape[1] / w2, two.shape[0] / h2
        sx, sy, tx, ty = warp
        left, top = tx - 0.5 * sx + 0.5, ty - 0.5 * sy + 0.5
        sx, sy, tx, ty = _descended(one, two, _placed(sx * gx / fx, sy * gy / fy, left * gx, top * gy), steps)
        left, top = tx - 0.5 * sx + 0.5, ty - 0.5 * sy + 0.5
        warp = _placed(sx * fx / gx, sy * fy / gy, left / gx, top / gy)
    return warp


def _descended(one: Plane, two: Plane, warp: _Warp, steps: int) -> _Warp:
    height, width = one.shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    slope_y, slope_x = np.gradient(two)
    planes = np.stack((two, slope_x, slope_y), axis=2)
    # Around the middle, so that scale and offset do not pull at each other.
    cx, cy = (width - 1) / 2, (height - 1) / 2
    for _ in range(steps):
        sx, sy, tx, ty = warp
        u, v = sx * x + tx, sy * y + ty
        columns = (u >= 0) & (u <= two.shape[1] - 1)
        rows = (v >= 0) & (v <= two.shape[0] - 1)
        if columns.sum() < width // 2 or rows.sum() < height // 2:
            return warp
        sampled = _sampled(planes, u[columns], v[rows])
        error = (one[np.ix_(rows, columns)] - sampled[..., 0]).ravel()
        down_x, down_y = sampled[..., 1], sampled[..., 2]
        jacobian = np.stack(
            (
                (down_x * (x[columns] - cx)).ravel(),
                (down_y * (y[rows] - cy)[:, None]).ravel(),
                down_x.ravel(),
                down_y.ravel(),
            ),
            axis=1,
        )
        normal = jacobian.T @ jacobian
        normal[np.diag_indices(4)] *= 1.001  # stays solvable where one axis has no structure
        normal[np.diag_indices(4)] += 1e-3
        step = np.linalg.solve(normal.astype(np.float64), (jacobian.T @ error).astype(np.float64))
        # What one step may change: more would be a leap into nowhere.
        dsx, dsy, dtx, dty = np.clip(step, [-0.05, -0.05, -3, -3], [0.05, 0.05, 3, 3])
        warp = (sx + dsx, sy + dsy, tx + dtx - dsx * cx, ty + dty - dsy * cy)
        if max(abs(dsx) * width, abs(dsy) * height, abs(dtx), abs(dty)) < 0.01:
            break
    return warp


def _sampled(planes: Plane, u: npt.NDArray[Any], v: npt.NDArray[Any]) -> Plane:
    """Return `planes` (h, w, c) at the columns `u` and rows `v`, bilinear: (len(v), len(u), c)."""
    height, width = planes.shape[:2]
    u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
    left, top = np.minimum(u.astype(int), max(0, width - 2)), np.minimum(v.astype(int), max(0, height - 2))
    across, down = (u - left).astype(np.float32)[None, :, None], (v - top).astype(np.float32)[:, None, None]
    upper, lower = planes[top], planes[np.minimum(top + 1, height - 1)]
    rows = upper + (lower - upper) * down
    right = np.minimum(left + 1, width - 1)
    sampled: Plane = rows[:, left] + (rows[:, right] - rows[:, left]) * across
    return sampled


def _shrunk(plane: Plane, side: int) -> Plane:
    """Return `plane` with its longer side at most `side`."""
    longest = max(plane.shape)
    if longest <= side:
        return plane
    height, width = (max(3, round(length * side / longest)) for length in plane.shape)
    return _resized(plane, height, width)


def _resized(plane: Plane, height: int, width: int) -> Plane:
    resized = _resampler(plane.shape[0], height) @ plane @ _resampler(plane.shape[1], width).T
    return resized.astype(np.float32, copy=False)


@cache
def _resampler(before: int, after: int) -> Plane:
    """Return the matrix (after, before) that resizes one axis: triangles as wide as the coarser of the two grids."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(before) - centres[:, None]) / max(1.0, scale))
    matrix: Plane = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _soft(rgb: Plane) -> Plane:
    """Blur by 1-2-1 along both axes."""
    for axis in (0, 1):
        pad = [(1, 1) if axis == one else (0, 0) for one in range(3)]
        wide = np.pad(rgb, pad, mode="edge")
        if axis == 0:
            rgb = 0.25 * wide[:-2] + 0.5 * wide[1:-1] + 0.25 * wide[2:]
        else:
            rgb = 0.25 * wide[:, :-2] + 0.5 * wide[:, 1:-1] + 0.25 * wide[:, 2:]
    return rgb


def _fast(length: int) -> int:
    """Return the next length that a Fourier transform likes."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
