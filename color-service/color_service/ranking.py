"""Which palettes are closest to some colours: exactly, by the definition that all services share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pixelgate_common.colors import complement, lab_to_srgb, palette_distances, parse_color, srgb_to_lab, to_hex
from pixelgate_common.contracts.color import RankedPalette, RankPalettes, WeightedLab
from pixelgate_common.errors import InvalidRequest


def rank(request: RankPalettes) -> list[RankedPalette]:
    """Return the closest palettes of the request, equal ones in their order.

    The weights of a palette count as parts of their sum. Raises `InvalidRequest` (422) when complements are asked for
    and all colours are greys.
    """
    colors = request.colors if request.mode == "similar" else _turned(request.colors)
    labs, shares = _table(request.palettes)
    distances = palette_distances([color.lab for color in colors], [color.weight for color in colors], labs, shares)
    closest = np.argsort(distances, kind="stable")[: request.limit]
    return [RankedPalette(index=int(index), distance=round(float(distances[index]), 4)) for index in closest]


def complements(colors: list[str]) -> list[str | None]:
    """Return the complement of each colour `#rrggbb`, None for greys."""
    turned = [complement(parse_color(color)) for color in colors]
    return [None if rgb is None else to_hex(rgb) for rgb in turned]


def _turned(colors: list[WeightedLab]) -> list[WeightedLab]:
    """Return the complements of those colours that have one, with their weights."""
    turned = [(complement(lab_to_srgb(color.lab)), color.weight) for color in colors]
    found = [
        WeightedLab(lab=tuple(srgb_to_lab(np.array(rgb, np.float64)).tolist()), weight=weight)
        for rgb, weight in turned
        if rgb is not None
    ]
    if not found:
        raise InvalidRequest("All colours are greys, which have no complement.", field="colors")
    return found


def _table(palettes: list[list[WeightedLab]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return all palettes as arrays (n, c, 3) and (n, c), with a share of 0 where a palette has fewer colours."""
    places = max(map(len, palettes))
    labs = np.zeros((len(palettes), places, 3), dtype=np.float32)
    shares = np.zeros((len(palettes), places), dtype=np.float32)
    used = np.arange(places) < np.array([len(palette) for palette in palettes])[:, None]
    labs[used] = [color.lab for palette in palettes for color in palette]
    shares[used] = [color.weight for palette in palettes for color in palette]
    return labs, shares / shares.sum(axis=1, keepdims=True)
