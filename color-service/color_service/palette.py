"""The colours of a picture: few, in CIELAB, with the shares of the picture that they cover.

A histogram of 32,768 cells is clustered by k-means in CIELAB; clusters that look alike are merged by CIEDE2000. Pixels
are thinned out, not averaged, so that flat colours stay exactly what they are (but for large JPEGs, in which nothing
is exactly flat). All is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pixelgate_common.colors import ciede2000, lab_to_srgb, srgb_to_lab, to_hex
from pixelgate_common.contracts.color import MAX_COLORS, Color
from pixelgate_common.images import DecodeLimits, decode, inspect

METHOD, VERSION = "lab-kmeans", 1
"""Raise the version with every change that gives any picture another palette."""

_DECODED_PIXELS = 1_000_000
_LARGE_JPEG_PIXELS = 300_000
_JPEG_PIXELS = 80_000  # of a large JPEG: decoded at a fraction, several times cheaper; nothing in it is exactly flat
_THINNED_PIXELS = 65_536
_STARTING_CLUSTERS, _MAX_ROUNDS, _STILL = 16, 15, 0.05
_LOOKS_ALIKE = 5.0  # CIEDE2000; about 1 is a just visible difference of patches side by side
_SMALLEST_SHARE = 0.01
_MAJORITY = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PictureColors:
    """The palette of the whole picture on white, and of what its alpha channel leaves visible (None: it hides nothing).

    `foreground` is empty when the alpha channel hides everything.
    """

    palette: list[Color]
    foreground: list[Color] | None


def fingerprint(colors: int = MAX_COLORS) -> str:
    """Return the name of the method that makes palettes of at most `colors` colours."""
    return f"palette/{METHOD}-{colors}/{VERSION}"


def picture_colors(data: bytes, limits: DecodeLimits, colors: int = MAX_COLORS) -> PictureColors:
    """Return the colours of a picture file. Raises as `pixelgate_common.images.decode` does."""
    about = inspect(data, limits)
    pixels_there = about.width * about.height
    large_jpeg = about.format == "JPEG" and pixels_there > _LARGE_JPEG_PIXELS
    # By area, not by side: a long strip would be left with a few rows that are mixtures of its colours.
    scale = sqrt((_JPEG_PIXELS if large_jpeg else _DECODED_PIXELS) / pixels_there)
    side_px = ceil(max(about.width, about.height) * scale)
    if not about.has_alpha:
        pixels = _thinned(np.asarray(decode(data, limits, max_side_px=side_px)))
        return PictureColors(palette_of(pixels, colors=colors), None)
    with_alpha = _thinned(np.asarray(decode(data, limits, mode="RGBA", max_side_px=side_px)))
    pixels, alpha = with_alpha[:, :3], with_alpha[:, 3]
    if (alpha == 255).all():
        return PictureColors(palette_of(pixels, colors=colors), None)
    opacity = alpha[:, None].astype(np.float32) / 255
    on_white = np.rint(pixels * opacity + 255 * (1 - opacity)).astype(np.uint8)
    return PictureColors(palette_of(on_white, colors=colors), palette_of(pixels, alpha, colors=colors))


def palette_of(
    pixels: npt.NDArray[np.uint8], weights: npt.NDArray[Any] | None = None, *, colors: int = MAX_COLORS
) -> list[Color]:
    """Return at most `colors` colours of sRGB `pixels` (n, 3), the largest share first; the shares add up to 1.

    `weights` (n,) say how much each pixel counts (its alpha); the palette is empty when none does.
    """
    labs, counts = _histogram(pixels, weights)
    if len(labs) == 0:
        return []
    clusters = _merged(labs, counts, _k_means(labs, counts), colors)
    found = [(cluster.share, tuple(cluster.lab.tolist())) for cluster in clusters]
    found.sort(key=lambda one: (-one[0], one[1]))
    return [
        Color(lab=(round(L, 3), round(a, 3), round(b, 3)), hex=to_hex(lab_to_srgb([L, a, b])), share=round(share, 6))
        for share, (L, a, b) in found
    ]


def _thinned(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the pixels (n, channels) of every so-manieth row and column, about _THINNED_PIXELS at most."""
    height, width, channels = picture.shape
    step = ceil(sqrt(height * width / _THINNED_PIXELS))
    # A side shorter than some steps would be thinned to its middle.
    across, down = min(step, max(1, width // 8)), min(step, max(1, height // 8))
    return np.ascontiguousarray(picture[down // 2 :: down, across // 2 :: across]).reshape(-1, channels)


def _histogram(pixels: npt.NDArray[np.uint8], weights: npt.NDArray[Any] | None) -> tuple[Floats, Floats]:
    """Return the mean CIELAB (m, 3) of the pixels in each cell that has any, and the cells' shares (m,)."""
    red, green, blue = (pixels[:, i].astype(np.uint16) for i in range(3))
    codes = ((red >> 3) << 10 | (green >> 3) << 5 | blue >> 3).astype(np.intp)
    counts = np.bincount(codes, weights, minlength=32768).astype(np.float64)
    used = np.flatnonzero(counts)
    if len(used) == 0:
        return np.empty((0, 3)), np.empty(0)
    sums = [
        np.bincount(codes, channel if weights is None else channel * weights, minlength=32768)[used]
        for channel in (red, green, blue)
    ]
    rgb = np.stack(sums, axis=1) / counts[used, None]
    return srgb_to_lab(rgb).astype(np.float64), counts[used] / counts[used].sum()


def _k_means(labs: Floats, counts: Floats) -> npt.NDArray[np.intp]:
    """Return the cluster of each cell, after Lloyd's algorithm with weights.

    The first centre is the heaviest cell, each next one the cell with the most weight times squared distance to the
    centres before it: k-means++ without the dice.
    """
    chosen = [int(counts.argmax())]
    nearest = np.square(labs - labs[chosen[0]]).sum(axis=1)
    while len(chosen) < _STARTING_CLUSTERS and (nearest * counts).max() > 0:
        chosen.append(int((nearest * counts).argmax()))
        nearest = np.minimum(nearest, np.square(labs - labs[chosen[-1]]).sum(axis=1))
    centres = labs[chosen]
    labels = _closest(labs, centres)
    for _ in range(_MAX_ROUNDS):
        weight = np.bincount(labels, counts, minlength=len(centres))
        sums = np.stack([np.bincount(labels, counts * labs[:, i], minlength=len(centres)) for i in range(3)], axis=1)
        moved = np.where(weight[:, None] > 0, sums / np.maximum(weight, 1e-300)[:, None], centres)
        shift, centres = np.abs(moved - centres).max(), moved
        labels = _closest(labs, centres)
        if shift < _STILL:
            break
    return labels


def _closest(labs: Floats, centres: Floats) -> npt.NDArray[np.intp]:
    distances = np.square(centres).sum(axis=1) - 2 * (labs @ centres.T)
    nearest: npt.NDArray[np.intp] = distances.argmin(axis=1)
    return nearest


@dataclass(slots=True)
class _Cluster:
    cells: npt.NDArray[np.intp]
    share: float
    lab: Floats


def _cluster(labs: Floats, counts: Floats, cells: npt.NDArray[np.intp]) -> _Cluster:
    """Return the cluster of some cells, with the colour that stands for it.

    That is the cell that makes up most of it, or else the mean: so a flat colour is given exactly, though the soft
    edges around it are counted to its share.
    """
    inside = counts[cells]
    share, heaviest = float(inside.sum()), int(inside.argmax())
    majority = inside[heaviest] > _MAJORITY * share
    return _Cluster(cells, share, labs[cells[heaviest]] if majority else inside @ labs[cells] / share)


def _merged(labs: Floats, counts: Floats, labels: npt.NDArray[np.intp], colors: int) -> list[_Cluster]:
    """Return the clusters with those merged that look alike or are tiny, and at most `colors` left.

    First whatever looks alike, the closest pair first; then tiny ones into the closest; then by Ward's criterion with
    CIEDE2000, which gives up what is small or similar and keeps what is large and different.
    """
    clusters = [_cluster(labs, counts, np.flatnonzero(labels == name)) for name in np.unique(labels)]
    while len(clusters) > 1:
        centres, shares = np.array([one.lab for one in clusters]), np.array([one.share for one in clusters])
        apart = ciede2000(centres[:, None], centres[None])
        np.fill_diagonal(apart, np.inf)
        smallest = int(shares.argmin())
        if apart.min() < _LOOKS_ALIKE:
            cost = apart
        elif shares[smallest] < _SMALLEST_SHARE:
            cost = np.where(np.arange(len(clusters))[:, None] == smallest, apart, np.inf)
        elif len(clusters) > colors:
            cost = apart**2 * (shares[:, None] * shares / (shares[:, None] + shares))
        else:
            break
        one, other = sorted(int(place) for place in np.unravel_index(int(cost.argmin()), cost.shape))
        merged = _cluster(labs, counts, np.concatenate((clusters[one].cells, clusters.pop(other).cells)))
        clusters[one] = merged
    return clusters
