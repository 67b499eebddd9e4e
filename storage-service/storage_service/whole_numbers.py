"""Comparisons of a field that holds whole numbers, brought to whole numbers: `gt 799.5` is `gte 800`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pixelgate_common.contracts.filters import Leaf, Scalar

SMALLEST, LARGEST = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class WholeNumbers:
    """Either the numbers of `values`, or those in [low, high], where None leaves a side open."""

    values: tuple[int, ...] | None = None
    low: int | None = None
    high: int | None = None

    def __contains__(self, number: int) -> bool:
        """Whether `number` is one of them."""
        if self.values is not None:
            return number in self.values
        return (self.low is None or self.low <= number) and (self.high is None or number <= self.high)


NOTHING = WholeNumbers(values=())


def wanted_values(leaf: Leaf) -> list[Scalar]:
    """Return the values of `eq` or `in`."""
    if leaf.in_ is not None:
        return leaf.in_
    return [] if leaf.eq is None else [leaf.eq]


def whole_numbers(leaf: Leaf) -> WholeNumbers:
    """Return the whole numbers of 64 bits that fit `leaf`, which has eq, in, gt, gte, lt or lte with numbers."""
    if leaf.eq is not None or leaf.in_ is not None:
        given = wanted_values(leaf)
        fitting = {int(v) for v in given if isinstance(v, int | float) and math.isfinite(v) and v == math.floor(v)}
        return WholeNumbers(values=tuple(sorted(v for v in fitting if SMALLEST <= v <= LARGEST)))
    lows, highs = [], []
    for bound, is_low, step in ((leaf.gt, True, 1), (leaf.gte, True, 0), (leaf.lt, False, 1), (leaf.lte, False, 0)):
        if bound is None:
            continue
        if not isinstance(bound, int | float) or math.isnan(bound):
            return NOTHING
        if math.isinf(bound):
            if (bound > 0) == is_low:
                return NOTHING
        elif is_low:
            lows.append(math.floor(bound) + 1 if step else math.ceil(bound))
        else:
            highs.append(math.ceil(bound) - 1 if step else math.floor(bound))
    low, high = max(lows, default=None), min(highs, default=None)
    if (low is not None and low > LARGEST) or (high is not None and high < SMALLEST):
        return NOTHING
    if low is not None and high is not None and low > high:
        return NOTHING
    return WholeNumbers(
        low=None if low is None or low <= SMALLEST else low, high=None if high is None or high >= LARGEST else high
    )
