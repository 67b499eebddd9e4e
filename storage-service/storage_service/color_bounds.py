"""How close a palette may be to a query at most, by table look-up alone: which palettes are worth an exact comparison.

A colour is known by its cell, 8 levels of red, green and blue wide. CIEDE2000 to the cell's centre says how far it is,
but for two things. A colour is up to 9 away from its cell's centre, among the darkest and greyest; and CIEDE2000 is not
continuous: where hues are opposite, the mean hue jumps to the other side, which can change a difference of 18 to one of
36 within a cell (near grey, against a vivid colour). So from the difference to the centre RADII times the cell's radius
is taken, and in cells where hues may be opposite the least of the difference to all corners counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from pixelgate_common.colors import EMPTY_CODE, ciede2000, srgb_to_lab

Labs = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float32]
RADII = 1.2
SLACK = 4.0
"""More than a bound has ever been too high: 3.9, among 26 million colours and queries at random, and 0 below 10."""
_CELLS = EMPTY_CODE
_CHUNK = 8192


@dataclass(frozen=True)
class _Cells:
    """Of each cell: its centre (n, 3) and corners (8, n, 3) in CIELAB, its radius by CIEDE2000 and in a*, b*."""

    centres: Labs
    corners: Labs
    radii: Numbers
    chroma_radii: Numbers


@cache
def _cells() -> _Cells:
    codes = np.arange(_CELLS)
    lowest = (np.stack((codes >> 10, codes >> 5 & 31, codes & 31), axis=-1) * 8).astype(np.float32)
    centres = srgb_to_lab(lowest + np.float32(3.5)).astype(np.float32)
    # Half a level beyond what has this code, because colours are means and are rounded into their cells.
    steps = np.array([[r, g, b] for r in (-0.5, 7.5) for g in (-0.5, 7.5) for b in (-0.5, 7.5)], np.float32)
    corners = np.stack([srgb_to_lab(np.clip(lowest + step, 0, 255)).astype(np.float32) for step in steps])
    radii = np.max([ciede2000(corner, centres) for corner in corners], axis=0)
    chroma_radii = np.sqrt(((corners - centres)[..., 1:] ** 2).sum(axis=-1)).max(axis=0) * 1.05 + 0.3
    return _Cells(centres, corners, radii.astype(np.float32), chroma_radii.astype(np.float32))


def warm_up() -> None:
    """Make what is the same for every query: a tenth of a second, once."""
    _cells()


class ColorBounds:
    """Lower bounds of the distances of palettes to one query."""

    def __init__(self, query_labs: Labs, weights: npt.NDArray[np.float64]) -> None:
        """Make a table for each of the colours (q, 3) with positive `weights` (q,): 2 to 3 ms each."""
        portions = (weights / weights.sum()).astype(np.float32)
        self._tables = np.full((len(query_labs), _CELLS + 1), np.inf, np.float32)
        for table, query, portion in zip(self._tables, query_labs, portions, strict=True):
            table[:_CELLS] = portion * bounds_of_cells(query)

    def of(self, codes: npt.NDArray[np.uint16]) -> Numbers:
        """Return the bound (n,) of palettes given as codes (c, n); infinite where no colour counts."""
        count = codes.shape[1]
        bounds = np.empty(count, np.float32)
        step = max(1, _CHUNK // max(1, len(codes)))
        for start in range(0, count, step):
            cells = codes[:, start : start + step].astype(np.intp)
            total = np.zeros(cells.shape[1], np.float32)
            for table in self._tables:
                total += table.take(cells).min(axis=0, initial=np.inf)
            bounds[start : start + step] = total
        return bounds


def bounds_of_cells(query: Labs) -> Numbers:
    """Return the least CIEDE2000, or less, of each cell's colours to `query` (3,): (32768,)."""
    cells = _cells()
    bounds = ciede2000(query, cells.centres) - RADII * cells.radii
    chroma = float(np.hypot(query[1], query[2]))
    if chroma > 0:
        # How far the cell's centre is along the opposite hue, and beside it.
        x, y = -query[1] / chroma, -query[2] / chroma
        along = cells.centres[:, 1] * x + cells.centres[:, 2] * y
        beside = np.abs(cells.centres[:, 1] * y - cells.centres[:, 2] * x)
        opposite = np.flatnonzero((along > -cells.chroma_radii) & (beside <= cells.chroma_radii))
        least = np.min([ciede2000(query, corner[opposite]) for corner in cells.corners], axis=0)
        bounds[opposite] = np.minimum(bounds[opposite], least - RADII * cells.radii[opposite])
    found: Numbers = np.maximum(bounds, 0).astype(np.float32)
    return found
