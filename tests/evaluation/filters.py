"""Filters by counted objects (`objects.dog >= 2`), and which pictures fit them in truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.evaluation.figures import Figure
from tests.evaluation.library import Library, listed

CASES = 20
Counts = Counter[str]


@dataclass(frozen=True)
class Case:
    """A filter in words, as the API takes it, and as a test of true counts."""

    words: str
    tree: dict[str, Any]
    fits: Callable[[Counts], bool]


def at_least(label: str, count: int) -> Case:
    """Return the filter for pictures with `count` of `label` or more."""
    return Case(
        f"{label} >= {count}", {"field": f"objects.{label}", "gte": count}, lambda counts: counts[label] >= count
    )


def both(one: Case, other: Case) -> Case:
    """Return the filter for what fits both."""
    return Case(
        f"({one.words} and {other.words})",
        {"all": [one.tree, other.tree]},
        lambda counts: one.fits(counts) and other.fits(counts),
    )


def either(one: Case, other: Case) -> Case:
    """Return the filter for what fits at least one."""
    return Case(
        f"({one.words} or {other.words})",
        {"any": [one.tree, other.tree]},
        lambda counts: one.fits(counts) or other.fits(counts),
    )


def without(one: Case, other: Case) -> Case:
    """Return the filter for what fits `one` and does not fit `other`."""
    return Case(
        f"({one.words} and not {other.words})",
        {"all": [one.tree, {"not": other.tree}]},
        lambda counts: one.fits(counts) and not other.fits(counts),
    )


def cases(truths: Sequence[Counts], seed: int = 1) -> list[Case]:
    """Return CASES filters: ten for two or more of a label, four for one or more, six of two filters put together.

    All of them by chance among the labels that occur, and for two or more among those that occur twice in a picture.
    """
    rng = Random(f"filters {seed}")
    present = sorted({label for counts in truths for label in counts})
    paired = sorted({label for counts in truths for label, count in counts.items() if count >= 2})
    twos = [at_least(label, 2) for label in rng.sample(paired, min(10, len(paired)))]
    ones = [at_least(label, 1) for label in rng.sample(present, 4 + 10 - len(twos))]
    return [*twos, *ones, *_mixed(truths, paired, rng)]


def _mixed(truths: Sequence[Counts], paired: Sequence[str], rng: Random) -> Iterator[Case]:
    """Yield six filters made of two, with labels that are seen together, so that "and" finds something."""
    together = sorted({tuple(sorted(rng.sample(sorted(counts), 2))) for counts in truths if len(counts) >= 2})
    for join in (both, both, either, either):
        one, other = rng.choice(together)
        yield join(at_least(one, 1), at_least(other, 1))
    one, other = rng.choice(together)
    yield without(at_least(one, 1), at_least(other, 1))
    label = rng.choice(paired)
    yield without(at_least(label, 1), at_least(label, 2))


def filters(library: Library, aim: float | None = 0.90) -> list[Figure]:
    """Measure how many of the filters find exactly the true pictures, and how close the sets found are on average."""
    truths = {image_id: library.truth(image_id) for image_id in library.scenes}
    exact, agreement, misses = 0, 0.0, []
    chosen = cases(list(truths.values()))
    for case in chosen:
        found = {record["id"] for record in listed(library.client, filter=json.dumps(case.tree))}
        right = {image_id for image_id, counts in truths.items() if case.fits(counts)}
        exact += found == right
        agreement += 2 * len(found & right) / (len(found) + len(right)) if found or right else 1.0
        if found != right:
            misses.append(f"{case.words}: {len(right - found)} missed, {len(found - right)} too many of {len(right)}")
    note = "; ".join(misses[:4]) + (" …" if len(misses) > 4 else "")
    return [
        Figure("filters by objects, exactly the truth", exact / len(chosen), aim, len(chosen), note),
        Figure("filters by objects, mean F1 of the sets", agreement / len(chosen), None, len(chosen)),
    ]
