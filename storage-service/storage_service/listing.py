"""Pages of pictures by metadata alone. The place of a page's end is the last picture's key, not a number of pictures.

So nothing is repeated or skipped while pictures arrive or go. The order by `created_at` is the order of `seq`, in which
commits happened: a picture cannot turn up behind one that was already listed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pixelgate_common.contracts.storage import Facet, FacetCount, ImagePage, ListImages
from psycopg import sql
from pydantic import BaseModel, Field

from storage_service.cursors import InvalidCursor, decode_cursor, encode_cursor
from storage_service.database import Connection, Database
from storage_service.filters_sql import Parameters, filter_sql
from storage_service.limits import SearchLimits
from storage_service.records import fetch_records

_KEYS = {"created_at": "seq", "captured_at": "captured_at", "bytes": "bytes", "filename": "filename"}
_TYPES = {"created_at": "bigint", "captured_at": "timestamptz", "bytes": "bigint", "filename": "text"}
_NULLABLE = ("captured_at", "filename")
_FACETS: dict[Facet, sql.SQL] = {
    "format": sql.SQL("FROM (SELECT i.format AS value FROM images i WHERE {}) AS found"),
    "media_type": sql.SQL("FROM (SELECT i.media_type AS value FROM images i WHERE {}) AS found"),
    "caption_by": sql.SQL("FROM (SELECT i.caption_by AS value FROM images i WHERE {}) AS found"),
    "tags": sql.SQL("FROM (SELECT unnest(i.tags) AS value FROM images i WHERE {}) AS found"),
}
BigInt = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ListPlace(BaseModel):
    """The last picture of a page: its key (None where it has none, and these come last) and its id."""

    key: BigInt | str | None
    id: BigInt


class Lister:
    """Answers `POST /v1/images/query`."""

    def __init__(self, db: Database, limits: SearchLimits) -> None:
        """Read from `db`."""
        self._db = db
        self._limits = limits

    async def page(self, wanted: ListImages) -> ImagePage:
        """Return one page; InvalidCursor for a cursor that is not of this question."""
        place = None if wanted.cursor is None else decode_cursor(wanted, wanted.cursor, ListPlace)
        if place is not None:
            _key_of(wanted.sort.lstrip("-"), place.key)
        async with self._db.connection() as conn:
            # One picture of the store for the page, its total and its facets.
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            keys = await self._keys(conn, wanted, place)
            more, keys = len(keys) > wanted.limit, keys[: wanted.limit]
            records = await fetch_records(conn, [image_id for _, image_id in keys])
            total = await self._total(conn, wanted)
            facets = {facet: await self._facet(conn, wanted, facet) for facet in dict.fromkeys(wanted.facets)}
        last = ListPlace(key=_plain(keys[-1][0]), id=keys[-1][1]) if more else None
        return ImagePage(
            images=[records[image_id] for _, image_id in keys],
            next_cursor=None if last is None else encode_cursor(wanted, last),
            total=total,
            facets=facets,
        )

    async def _keys(self, conn: Connection, wanted: ListImages, place: ListPlace | None) -> list[tuple[Any, int]]:
        """Return (key, id) of the page's pictures and, where there is one, of the next."""
        found: list[tuple[Any, int]] = []
        if place is None or place.key is not None:
            found = await self._part(conn, wanted, place, with_key=True, limit=wanted.limit + 1)
            place = None
        if len(found) <= wanted.limit and wanted.sort.lstrip("-") in _NULLABLE:
            rest = wanted.limit + 1 - len(found)
            found += await self._part(conn, wanted, place, with_key=False, limit=rest)
        return found

    async def _part(
        self, conn: Connection, wanted: ListImages, place: ListPlace | None, *, with_key: bool, limit: int
    ) -> list[tuple[Any, int]]:
        field, down = wanted.sort.lstrip("-"), wanted.sort.startswith("-")
        parameters = Parameters()
        key, beyond = sql.SQL(f"i.{_KEYS[field]}"), sql.SQL("<" if down else ">")
        conditions = [filter_sql(wanted.filter, parameters)]
        conditions.append(sql.SQL("{} IS NOT NULL" if with_key else "{} IS NULL").format(key))
        if place is not None and with_key:
            at = sql.SQL("{}::" + _TYPES[field]).format(parameters.add(_key_of(field, place.key)))
            last = parameters.add(place.id)
            conditions.append(sql.SQL("({}, i.id) {} ({}, {}::bigint)").format(key, beyond, at, last))
        elif place is not None:
            conditions.append(sql.SQL("i.id {} {}::bigint").format(beyond, parameters.add(place.id)))
        order = sql.SQL("{key} {way}, i.id {way}" if with_key else "i.id {way}").format(
            key=key, way=sql.SQL("DESC" if down else "ASC")
        )
        query = sql.SQL("SELECT {}, i.id FROM images i WHERE {} ORDER BY {} LIMIT {}").format(
            key, sql.SQL(" AND ").join(conditions), order, parameters.add(limit)
        )
        return [(row[0], row[1]) for row in await (await conn.execute(query, parameters, prepare=False)).fetchall()]

    async def _total(self, conn: Connection, wanted: ListImages) -> int:
        parameters = Parameters()
        query = sql.SQL("SELECT count(*) FROM images i WHERE {}").format(filter_sql(wanted.filter, parameters))
        row = await (await conn.execute(query, parameters, prepare=False)).fetchone()
        return 0 if row is None else int(row[0])

    async def _facet(self, conn: Connection, wanted: ListImages, facet: Facet) -> list[FacetCount]:
        parameters = Parameters()
        source = _FACETS[facet].format(filter_sql(wanted.filter, parameters))
        query = sql.SQL(
            "SELECT value, count(*) {} WHERE value IS NOT NULL GROUP BY value ORDER BY count(*) DESC, value LIMIT {}"
        ).format(source, parameters.add(self._limits.facet_values))
        rows = await (await conn.execute(query, parameters, prepare=False)).fetchall()
        return [FacetCount(value=value, count=count) for value, count in rows]


def _plain(key: Any) -> int | str | None:
    return key.isoformat() if isinstance(key, datetime) else key


def _key_of(field: str, key: int | str | None) -> object:
    """Return a cursor's key as Postgres compares it; InvalidCursor when a client made it up."""
    match field, key:
        case (("captured_at" | "filename"), None):
            return None
        case "captured_at", str():
            try:
                return datetime.fromisoformat(key)
            except ValueError as error:
                raise InvalidCursor("The cursor is not one of ours.", field="cursor") from error
        case "filename", str() if "\x00" not in key:
            return key
        case (("created_at" | "bytes"), int()):
            return key
    raise InvalidCursor("The cursor is not one of ours.", field="cursor")
