"""What the vector index can be asked about a point's payload, without a word of any library.

A condition on a field holds when any of the field's values fits; a point that lacks the field fits none, and `Not`
includes it. These are the index's own semantics and the filters' (`pixelgate_common.contracts.filters`) alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field has one of these values (all text, or all whole numbers)."""

    field: str
    values: tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """The whole number lies in [low, high]; None leaves a side open."""

    field: str
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class During:
    """The time lies within the bounds, given as ISO 8601 text with a zone; None leaves one open.

    At most one of `gt` and `gte`, and one of `lt` and `lte`.
    """

    field: str
    gt: str | None = None
    gte: str | None = None
    lt: str | None = None
    lte: str | None = None


@dataclass(frozen=True, slots=True)
class Present:
    """The field has a value."""

    field: str


@dataclass(frozen=True, slots=True)
class IdIn:
    """The point is one of these pictures."""

    image_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Condition


@dataclass(frozen=True, slots=True)
class And:
    """Every part holds; without parts it always does."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one part holds; without parts it never does."""

    parts: tuple[Condition, ...]


Condition = OneOf | Between | During | Present | IdIn | Not | And | Or

ALWAYS = And(())
NEVER = Or(())


def both(first: Condition | None, second: Condition | None) -> Condition | None:
    """Return the condition that both hold; None stands for one that always does."""
    if first is None or second is None:
        return first if second is None else second
    return And((first, second))


def ids(image_ids: Iterable[int]) -> Condition:
    """Return the condition that the point is one of these pictures (no point has a negative id)."""
    return IdIn(frozenset(image_id for image_id in image_ids if image_id >= 0))
