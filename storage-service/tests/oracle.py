"""What a filter means, said once more in plain Python: the specification that both translations are held against."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from pixelgate_common.contracts.filters import All, Any_, Filter, Leaf, Not, parse_time


def fits(tree: Filter, picture: dict[str, Any]) -> bool:
    """Whether `picture` (column name -> value) fits `tree`."""
    match tree:
        case All():
            return all(fits(part, picture) for part in tree.all)
        case Any_():
            return any(fits(part, picture) for part in tree.any)
        case Not():
            return not fits(tree.not_, picture)
        case Leaf():
            return _leaf(tree, picture)


def _leaf(leaf: Leaf, picture: dict[str, Any]) -> bool:
    group, _, name = leaf.field.partition(".")
    values: list[Any]
    if group == "objects":
        count = picture["object_counts"].get(name, 0)
        if leaf.exists is not None:
            return bool(count > 0) == leaf.exists
        # Nobody has looked yet: then it is not known to be zero.
        values = [count] if picture["objects_known"] else []
    elif group == "tags":
        values = picture["tags"]
    elif name:
        values = [picture[group].get(name)]
    else:
        values = [picture[leaf.field]]
    values = [value for value in values if value is not None]
    if leaf.exists is not None:
        return bool(values) == leaf.exists
    return any(all(_holds(how, value, bound, leaf) for how, bound in leaf.comparisons.items()) for value in values)


def _holds(how: str, value: Any, bound: Any, leaf: Leaf) -> bool:
    match how:
        case "eq":
            return _same(value, bound, leaf)
        case "in":
            return any(_same(value, one, leaf) for one in bound)
        case "prefix":
            return isinstance(value, str) and value.startswith(bound)
    left, right = _comparable(value, leaf), _comparable(bound, leaf)
    if type(left) is not type(right) or isinstance(left, bool) or _is_nan(left) or _is_nan(right):
        return False
    ordered = {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}
    return bool(ordered[how])


def _same(value: Any, bound: Any, leaf: Leaf) -> bool:
    left, right = _comparable(value, leaf), _comparable(bound, leaf)
    return type(left) is type(right) and bool(left == right)


def _comparable(value: Any, leaf: Leaf) -> Any:
    if leaf.kind == "time":
        return value if isinstance(value, datetime) else parse_time(leaf.field, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return Decimal(repr(value))


def _is_nan(value: Any) -> bool:
    return isinstance(value, Decimal) and value.is_nan()
