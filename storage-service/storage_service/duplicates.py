"""Groups of duplicates: what was found (`comparisons`) and what people decided, as groups that share no picture.

A group is what its pairs connect, taken from the surest to the least sure, except that no two pictures of which a
person said `different` ever come into one group. A pair of the tier `same` counts in `similar` too.

Whoever changes pairs, decisions or pictures in groups takes `lock_groups` first, before any row, and calls `regroup`
in the same transaction: so groups always are what the other tables say.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated

import structlog
from pixelgate_common.contracts.storage import DecideDuplicates, DuplicateGroup, DuplicatePage, Tier
from pixelgate_common.errors import NotFound
from psycopg import sql
from pydantic import BaseModel, Field

from storage_service.cursors import decode_cursor, encode_cursor
from storage_service.database import Connection, Database
from storage_service.records import fetch_records

log = structlog.get_logger(__name__)
TIERS: tuple[Tier, ...] = ("same", "similar")
MAX_SHOWN = 100
"""Pictures of one group that a page shows, the first ones; `collapse` knows them all."""
MAX_CONNECTED = 5_000
"""Pictures that are looked at to group one anew; a chain that is longer is left as it was beyond them."""
MARK_DUE = (
    "INSERT INTO duplicates_due (image_id, due_at) SELECT id, clock_timestamp() + make_interval(secs => %s)"
    " FROM unnest(%s::bigint[]) AS id ORDER BY id ON CONFLICT (image_id) DO UPDATE SET due_at = excluded.due_at"
)
"""Has pictures compared (`comparisons`); takes the seconds from now, and their ids."""
AFTER_ARRIVAL_S, AFTER_VECTOR_S = 30.0, 2.0
"""A picture waits for its vectors a little; where none come, its hash alone has to do."""
_LOCK = 0x6475706C
_PERSON = 2.0
"""The sureness of a person's `same`; found pairs have at most 1."""

Edge = tuple[float, int, int]


class DuplicatesAsked(BaseModel):
    """The question of `GET /v1/duplicates`."""

    tier: Tier
    limit: int
    cursor: str | None


class GroupPlace(BaseModel):
    """The last group of a page."""

    group: Annotated[int, Field(ge=0, lt=2**63)]


async def lock_groups(conn: Connection) -> None:
    """Let this transaction be the only one that changes groups, until it ends."""
    await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


def joined(edges: Iterable[Edge], different: Collection[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of at least two that `edges` (sureness, a, b) make, each in order, no `different` pair in any.

    The surest edges come first, equal ones by their ids; one that would bring two `different` pictures together is
    passed over.
    """
    groups: dict[int, set[int]] = {}
    enemies: dict[int, set[int]] = {}
    for a, b in different:
        enemies.setdefault(a, set()).add(b)
        enemies.setdefault(b, set()).add(a)
    for _, a, b in sorted(edges, key=lambda edge: (-edge[0], edge[1], edge[2])):
        one, other = groups.setdefault(a, {a}), groups.setdefault(b, {b})
        if one is other or any(enemies.get(image_id, set()) & other for image_id in one):
            continue
        small, large = sorted((one, other), key=len)
        large |= small
        for image_id in small:
            groups[image_id] = large
    found = {id(group): group for group in groups.values() if len(group) > 1}
    return sorted(sorted(group) for group in found.values())


async def regroup(conn: Connection, image_ids: Collection[int]) -> None:
    """Bring the groups of these pictures, and all that hangs together with them, to what pairs and decisions say."""
    for tier in TIERS:
        connected, edges = await _connected(conn, tier, image_ids)
        rows = await conn.execute(
            "SELECT a, b FROM duplicate_decisions"
            " WHERE decision = 'different' AND a = ANY(%(ids)s) AND b = ANY(%(ids)s)",
            {"ids": list(connected)},
        )
        groups = joined(edges, {(a, b) for a, b in await rows.fetchall()})
        members = [(image_id, group[0]) for group in groups for image_id in group]
        await conn.execute(
            "DELETE FROM duplicate_members WHERE tier = %s AND image_id = ANY(%s) AND NOT image_id = ANY(%s)",
            (tier, list(connected), [image_id for image_id, _ in members]),
        )
        await conn.execute(
            "INSERT INTO duplicate_members (tier, image_id, group_id)"
            " SELECT %s, * FROM unnest(%s::bigint[], %s::bigint[])"
            " ON CONFLICT (tier, image_id) DO UPDATE SET group_id = excluded.group_id"
            " WHERE duplicate_members.group_id <> excluded.group_id",
            (tier, [image_id for image_id, _ in members], [group for _, group in members]),
        )


async def _connected(conn: Connection, tier: Tier, image_ids: Collection[int]) -> tuple[set[int], set[Edge]]:
    """Return the pictures that pairs, decisions or a present group connect with `image_ids`, and the edges of them."""
    found, edges, fresh = set(image_ids), set[Edge](), set(image_ids)
    while fresh:
        if len(found) > MAX_CONNECTED:
            log.warning("duplicates_chain_cut", tier=tier, pictures=len(found))
            break
        rows = await conn.execute(
            "SELECT score, a, b FROM duplicate_pairs"
            "   WHERE (a = ANY(%(ids)s) OR b = ANY(%(ids)s)) AND tier = ANY(%(tiers)s)"
            " UNION ALL SELECT %(person)s, a, b FROM duplicate_decisions"
            "   WHERE (a = ANY(%(ids)s) OR b = ANY(%(ids)s)) AND decision = 'same'",
            {
                "ids": list(fresh),
                "tiers": ["same"] if tier == "same" else list(TIERS),
                "person": _PERSON,
            },
        )
        new = {(score, a, b) for score, a, b in await rows.fetchall()}
        edges |= new
        members = await conn.execute(
            "SELECT m.image_id FROM duplicate_members m WHERE m.tier = %(tier)s AND m.group_id IN"
            " (SELECT group_id FROM duplicate_members WHERE tier = %(tier)s AND image_id = ANY(%(ids)s))",
            {"tier": tier, "ids": list(fresh)},
        )
        near = {image_id for _, a, b in new for image_id in (a, b)} | {row[0] for row in await members.fetchall()}
        fresh = near - found
        found |= fresh
    return found, edges


async def peers_of(conn: Connection, image_id: int) -> set[int]:
    """Return the other pictures of this one's groups."""
    rows = await conn.execute(
        "SELECT o.image_id FROM duplicate_members m JOIN duplicate_members o USING (tier, group_id)"
        " WHERE m.image_id = %s AND o.image_id <> m.image_id",
        (image_id,),
    )
    return {row[0] for row in await rows.fetchall()}


async def groups_of(conn: Connection, tier: Tier, image_ids: Sequence[int]) -> dict[int, int]:
    """Return the group of each picture that is in one."""
    rows = await conn.execute(
        "SELECT image_id, group_id FROM duplicate_members WHERE tier = %s AND image_id = ANY(%s)",
        (tier, list(image_ids)),
    )
    return dict(await rows.fetchall())


async def decide(db: Database, decided: DecideDuplicates) -> None:
    """Keep what a person says of these pictures; the last word on two of them counts. NotFound when one is missing."""
    ids = sorted(set(decided.image_ids))
    pairs = list(itertools.combinations(ids, 2))
    async with db.connection() as conn:
        await lock_groups(conn)
        rows = await conn.execute("SELECT id FROM images WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE", (ids,))
        if missing := set(ids) - {row[0] for row in await rows.fetchall()}:
            raise NotFound(f"There is no picture {min(missing)}.", field="image_ids")
        await conn.execute(
            "INSERT INTO duplicate_decisions (a, b, decision)"
            " SELECT a, b, %s FROM unnest(%s::bigint[], %s::bigint[]) AS pairs (a, b)"
            " ON CONFLICT (a, b) DO UPDATE SET decision = excluded.decision, decided_at = now()",
            (decided.decision, [a for a, _ in pairs], [b for _, b in pairs]),
        )
        await regroup(conn, ids)


async def fetch_groups(db: Database, asked: DuplicatesAsked) -> DuplicatePage:
    """Return a page of groups in the order of their first pictures; InvalidCursor for a cursor of another question.

    Pictures that arrive come into groups at their ends, so the pages stay what they are. A group of `similar` is listed
    only where it says more than `same` does.
    """
    after = -1 if asked.cursor is None else decode_cursor(asked, asked.cursor, GroupPlace).group
    more_than_same = (
        " HAVING count(*) > 1"
        if asked.tier == "same"
        else " HAVING count(*) > 1 AND count(DISTINCT coalesce(s.group_id, -m.image_id)) > 1"
    )
    async with db.connection() as conn:
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        rows = await conn.execute(
            "SELECT m.group_id FROM duplicate_members m"
            " LEFT JOIN duplicate_members s ON s.tier = 'same' AND s.image_id = m.image_id"
            " WHERE m.tier = %s AND m.group_id > %s GROUP BY m.group_id"
            f"{more_than_same} ORDER BY m.group_id LIMIT %s".encode(),
            (asked.tier, after, asked.limit + 1),
        )
        groups = [row[0] for row in await rows.fetchall()]
        more, groups = len(groups) > asked.limit, groups[: asked.limit]
        rows = await conn.execute(
            "SELECT m.group_id, m.image_id FROM unnest(%s::bigint[]) AS g (id) CROSS JOIN LATERAL"
            " (SELECT group_id, image_id FROM duplicate_members WHERE tier = %s AND group_id = g.id"
            "  ORDER BY image_id LIMIT %s) AS m ORDER BY m.group_id, m.image_id",
            (groups, asked.tier, MAX_SHOWN),
        )
        members: dict[int, list[int]] = {}
        for group, image_id in await rows.fetchall():
            members.setdefault(group, []).append(image_id)
        records = await fetch_records(conn, [image_id for ids in members.values() for image_id in ids])
        row = await (await conn.execute("SELECT count(*) FROM duplicates_due")).fetchone()
    return DuplicatePage(
        groups=[
            DuplicateGroup(tier=asked.tier, images=[records[image_id] for image_id in members[group]])
            for group in groups
        ],
        next_cursor=encode_cursor(asked, GroupPlace(group=groups[-1])) if more else None,
        pending=0 if row is None else row[0],
    )


def not_behind_a_peer(tier: sql.Composable, seq: sql.Composable, fits: sql.Composable) -> sql.Composable:
    """Return the condition on a picture `o` (id, seq) that no later one of its group, up to `seq`, `fits` (on `i`)."""
    return sql.SQL(
        "NOT EXISTS (SELECT 1 FROM duplicate_members m JOIN duplicate_members n USING (tier, group_id)"
        " JOIN images i ON i.id = n.image_id"
        " WHERE m.tier = {} AND m.image_id = o.id AND i.seq > o.seq AND i.seq <= {} AND {})"
    ).format(tier, seq, fits)
