"""Filters as conditions on the vector index's payload, as far as its indexes can answer them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pixelgate_common.contracts.filters import RECORD_FIELDS, All, Any_, Filter, Leaf, Not, parse_time

from storage_service.payloads import (
    LONG_TEXTS,
    MAX_COUNT,
    OBJECTS_KNOWN,
    count_token,
    presence_token,
    time_text,
    value_token,
)
from storage_service.vectors import conditions
from storage_service.vectors.conditions import ALWAYS, NEVER, Condition
from storage_service.whole_numbers import WholeNumbers, wanted_values, whole_numbers

ALWAYS_THERE = frozenset({"id", "sha256", "media_type", "format", "width", "height", "bytes", "created_at"})
"""The record's fields that every picture has."""
_EXACT_AS_FLOAT = 2**53  # the engine compares ranges of whole numbers as float64


@dataclass(frozen=True, slots=True)
class Translation:
    """A condition that every fitting picture fits; `exact`: and no other one does."""

    condition: Condition
    exact: bool


_CANNOT_SAY = Translation(ALWAYS, False)


def translate(tree: Filter) -> Translation:
    """Return what the index can say of `tree`."""
    match tree:
        case All():
            parts = [translate(part) for part in tree.all]
            return Translation(conditions.And(tuple(p.condition for p in parts)), all(p.exact for p in parts))
        case Any_():
            parts = [translate(part) for part in tree.any]
            if any(part.condition == ALWAYS for part in parts):
                return Translation(ALWAYS, all(p.exact for p in parts))
            return Translation(conditions.Or(tuple(p.condition for p in parts)), all(p.exact for p in parts))
        case Not():
            # The opposite of "these and perhaps some more" would leave fitting pictures out.
            part = translate(tree.not_)
            return Translation(conditions.Not(part.condition), True) if part.exact else _CANNOT_SAY
        case Leaf():
            condition = _leaf(tree)
            return _CANNOT_SAY if condition is None else Translation(condition, True)


def _leaf(leaf: Leaf) -> Condition | None:
    if leaf.exists is not None:
        present = _present(leaf.field)
        return present if leaf.exists else conditions.Not(present)
    if leaf.field.startswith("objects."):
        return _counts(leaf.field, whole_numbers(leaf))
    match leaf.kind:
        case "number":
            return _whole(leaf.field, whole_numbers(leaf))
        case "time":
            return _time(leaf)
    if leaf.eq is None and leaf.in_ is None:
        return None  # prefixes and orders of text
    wanted = wanted_values(leaf)
    if leaf.field in RECORD_FIELDS and leaf.field not in LONG_TEXTS:
        return conditions.OneOf(leaf.field, tuple(str(value) for value in wanted))
    tokens = tuple(
        value_token(leaf.field, value)
        for value in wanted
        if not (isinstance(value, float) and not math.isfinite(value))
    )
    return conditions.OneOf("tokens", tokens) if tokens else NEVER


def _present(field: str) -> Condition:
    if field in ALWAYS_THERE:
        return ALWAYS
    if field.startswith("objects."):
        return conditions.OneOf("tokens", (count_token(field, 1),))
    if field in RECORD_FIELDS and field not in LONG_TEXTS:
        return conditions.Present(field)
    return conditions.OneOf("tokens", (presence_token(field),))


def _whole(field: str, numbers: WholeNumbers) -> Condition | None:
    if numbers.values is not None:
        if not numbers.values:
            return NEVER
        return conditions.ids(numbers.values) if field == "id" else conditions.OneOf(field, numbers.values)
    if any(bound is not None and abs(bound) > _EXACT_AS_FLOAT for bound in (numbers.low, numbers.high)):
        return None
    if numbers.low is None and numbers.high is None:
        return ALWAYS
    return conditions.Between(field, numbers.low, numbers.high)


def _counts(field: str, numbers: WholeNumbers) -> Condition | None:
    if numbers.values is not None:
        parts = [_count_span(field, value, value) for value in numbers.values]
    else:
        parts = [_count_span(field, numbers.low or 0, numbers.high)]
    known = tuple(part for part in parts if part is not None)
    return conditions.Or(known) if len(known) == len(parts) else None


def _count_span(field: str, low: int, high: int | None) -> Condition | None:
    if (high is not None and high < 0) or (high is not None and high < low):
        return NEVER
    if low > MAX_COUNT or (high is not None and high + 1 > MAX_COUNT):
        return None
    parts: list[Condition] = [conditions.OneOf("tokens", (count_token(field, low) if low > 0 else OBJECTS_KNOWN,))]
    if high is not None:
        parts.append(conditions.Not(conditions.OneOf("tokens", (count_token(field, high + 1),))))
    return conditions.And(tuple(parts))


def _time(leaf: Leaf) -> Condition:
    if leaf.eq is not None or leaf.in_ is not None:
        moments = [time_text(parse_time(leaf.field, value)) for value in wanted_values(leaf)]
        return conditions.Or(tuple(conditions.During(leaf.field, gte=text, lte=text) for text in moments))
    # One condition for each bound: of gt and gte together the engine would look at one only.
    bounds = [{name: time_text(parse_time(leaf.field, value))} for name, value in leaf.comparisons.items()]
    return conditions.And(tuple(conditions.During(leaf.field, **bound) for bound in bounds))
