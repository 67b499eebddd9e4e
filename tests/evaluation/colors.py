"""Search by colours against the exhaustive ranking, which is computed here from the records' palettes alone."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from tests.evaluation.figures import Figure
from tests.evaluation.library import Library

TOP = 24
MIN_SHARE = 0.05
"""A picture's colours with a smaller share do not count (architecture.md §2, Colour)."""
TOLERANCE = 0.02
"""Distances closer than this are ties: records and answers round their numbers."""
Floats = NDArray[np.float64]
Rgb = tuple[int, int, int]
Weighted = tuple[Rgb, float]


def hex_of(color: Rgb) -> str:
    """Return a colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def lab_of(color: Rgb) -> Floats:
    """Return an sRGB colour (0–255) in CIELAB (D65), shape (3,)."""
    return np.asarray(rgb2lab(np.array(color, dtype=np.float64).reshape(1, 1, 3) / 255)).reshape(3)


def complement(color: Rgb) -> Rgb | None:
    """Return the colour turned by 180° of hue in HSV; None for greys, which have no hue."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    if saturation == 0:
        return None
    red, green, blue = colorsys.hsv_to_rgb((hue + 0.5) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


class Exhaustive:
    """Every picture's distance to some colours, by scikit-image's CIEDE2000."""

    def __init__(self, records: dict[int, dict[str, Any]]) -> None:
        """Take the palettes of `records`, by id."""
        self.ids = sorted(records)
        counted = [
            [color["lab"] for color in records[image_id]["palette"] if color["share"] >= MIN_SHARE]
            for image_id in self.ids
        ]
        self._labs = np.zeros((len(counted), max(map(len, counted)), 3))
        self._there = np.zeros(self._labs.shape[:2], dtype=bool)
        for place, labs in enumerate(counted):
            self._labs[place, : len(labs)] = labs
            self._there[place, : len(labs)] = True

    def distances(self, labs: Sequence[Floats], weights: Sequence[float]) -> dict[int, float]:
        """Return by picture the weighted mean, over the query's colours, of the smallest distance to one of its own."""
        nearest = []
        for lab in labs:
            # The two arrays must have one shape: with (3,) and (n, 3) scikit-image answers nonsense.
            each = deltaE_ciede2000(np.broadcast_to(lab, self._labs.shape), self._labs)
            nearest.append(np.where(self._there, each, np.inf).min(axis=1))
        means = np.average(np.stack(nearest), axis=0, weights=np.asarray(weights, dtype=np.float64))
        return dict(zip(self.ids, means.tolist(), strict=True))


def same_ranking(hits: Sequence[dict[str, Any]], distances: dict[int, float], top: int = TOP) -> str | None:
    """Return None when `hits` are the closest pictures in order, ties in any order; else what is wrong."""
    expected = sorted(distances.values())[:top]
    ids = [hit["image"]["id"] for hit in hits]
    if len(ids) != len(expected) or len(set(ids)) != len(ids):
        return f"{len(ids)} hits, {len(set(ids))} different, instead of {len(expected)}"
    for place, (hit, wanted) in enumerate(zip(hits, expected, strict=True)):
        true, told = distances[hit["image"]["id"]], hit["parts"]["color"]
        if abs(true - wanted) > TOLERANCE:
            return f"place {place + 1} has distance {true:.3f}, the exhaustive ranking {wanted:.3f}"
        if told is None or abs(told - true) > TOLERANCE:
            return f"place {place + 1} is told to be at {told}, and is at {true:.3f}"
    return None


def queries(count: int, seed: str) -> list[list[Weighted]]:
    """Return queries of one to three colours by chance, none of them near to grey, with weights."""
    rng = Random(f"colours {seed}")
    made: list[list[Weighted]] = []
    while len(made) < count:
        colors = [
            ((rng.randrange(256), rng.randrange(256), rng.randrange(256)), rng.choice((0.25, 0.5, 1.0, 2.0)))
            for _ in range(1 + len(made) % 3)
        ]
        # What has next to no hue may be left out by a search for complements: that is not what is measured here.
        if all(max(color) - min(color) >= 32 for color, _ in colors):
            made.append(colors)
    return made


def by_colors(library: Library, mode: str, cases: int, aim: float | None = 1.0) -> Figure:
    """Measure how many searches by weighted colours rank as the exhaustive ranking does."""
    exhaustive, wrong = Exhaustive(library.records), []
    for colors in queries(cases, mode):
        terms = [{"color": hex_of(color), "weight": weight} for color, weight in colors]
        turned = colors if mode == "similar" else [(complement(color) or color, weight) for color, weight in colors]
        distances = exhaustive.distances([lab_of(color) for color, _ in turned], [weight for _, weight in turned])
        said = same_ranking(library.search(terms=terms, mode=mode, limit=TOP), distances)
        if said is not None:
            wrong.append(f"{terms}: {said}")
    return Figure(f"{mode} colours, exhaustive ranking", 1 - len(wrong) / cases, aim, cases, "; ".join(wrong[:1]))


def by_palette(library: Library, cases: int, aim: float | None = 1.0) -> Figure:
    """Measure how many searches by a stored picture's palette rank as the exhaustive ranking does."""
    wrong = []
    chosen = sorted(library.scenes)[:: max(1, len(library.scenes) // cases)][:cases]
    for image_id in chosen:
        palette = library.records[image_id]["palette"]
        others = {other: record for other, record in library.records.items() if other != image_id}
        distances = Exhaustive(others).distances(
            [np.asarray(color["lab"], dtype=np.float64) for color in palette], [color["share"] for color in palette]
        )
        said = same_ranking(library.search(terms=[palette_term(image_id)], mode="similar", limit=TOP), distances)
        if said is not None:
            wrong.append(f"{image_id}: {said}")
    note = "; ".join(wrong[:1])
    return Figure("a picture's palette, exhaustive ranking", 1 - len(wrong) / len(chosen), aim, len(chosen), note)


def palette_term(image_id: int) -> dict[str, Any]:
    """Return the term that asks for pictures with the colours of a stored one."""
    return {"palette_of": image_id}
