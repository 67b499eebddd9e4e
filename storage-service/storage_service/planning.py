"""How a filter reaches the vector index: as a condition on payloads, as a list of ids, or only afterwards."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pixelgate_common.contracts.filters import Filter
from psycopg import sql

from storage_service.database import Connection
from storage_service.filters_index import translate
from storage_service.filters_sql import Parameters, filter_sql
from storage_service.vectors import conditions
from storage_service.vectors.conditions import Condition


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask the index. Unless `complete`, much of what it proposes may not fit and more must be asked for."""

    condition: Condition | None
    complete: bool

    @property
    def nothing_fits(self) -> bool:
        """Whether it is known already that no picture fits."""
        return isinstance(self.condition, conditions.IdIn) and not self.condition.image_ids


async def make_plan(conn: Connection, tree: Filter | None, exclude: Collection[int], max_ids: int) -> Plan:
    """Return the cheapest way to have the index honour `tree` and leave out `exclude`."""
    without = conditions.Not(conditions.ids(exclude)) if exclude else None
    if tree is None:
        return Plan(without, True)
    translation = translate(tree)
    if translation.exact:
        return Plan(conditions.both(translation.condition, without), True)
    found = await fitting_ids(conn, tree, max_ids)
    if found is not None:
        return Plan(conditions.ids(set(found) - set(exclude)), True)
    return Plan(conditions.both(translation.condition, without), False)


async def fitting_ids(conn: Connection, tree: Filter, max_ids: int) -> list[int] | None:
    """Return the pictures that fit, or None when they are more than `max_ids`."""
    parameters = Parameters()
    query = sql.SQL("SELECT i.id FROM images i WHERE {} LIMIT {}").format(
        filter_sql(tree, parameters), parameters.add(max_ids + 1)
    )
    found = [row[0] for row in await (await conn.execute(query, parameters, prepare=False)).fetchall()]
    return found if len(found) <= max_ids else None
