"""Search: rankings by vectors, by words and by colours under one filter, fused, page by page.

A page's place is a snapshot of the clock, which keeps pictures that came later out of the ranking, and the last hit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pixelgate_common.contracts.storage import (
    Hit,
    ScoreParts,
    Search,
    SearchPage,
    StoredVectors,
    VectorsWanted,
)
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest
from pixelgate_common.vectors import decode_vector, encode_vector
from pydantic import BaseModel, Field

from storage_service.color_index import ColorIndex
from storage_service.cursors import decode_cursor, encode_cursor
from storage_service.database import Connection, Database
from storage_service.duplicates import groups_of
from storage_service.fusion import fuse
from storage_service.generations import Generations, need_generation
from storage_service.limits import SearchLimits
from storage_service.rankings import Direction, Rankings, Scored
from storage_service.records import fetch_records
from storage_service.vectors.halves import from_half, to_unit

BigInt = Annotated[int, Field(ge=0, lt=2**63)]


COLOR_HALF = 10.0
"""The colour distance with a score of one half: two colours so far apart are called alike by some and not by others."""


def color_score(distance: float) -> float:
    """Return the score of a colour distance (CIEDE2000, 0 or more) in (0, 1]: 1 / (1 + distance / COLOR_HALF)."""
    return 1.0 / (1.0 + distance / COLOR_HALF)


class SearchPlace(BaseModel):
    """The clock when the first page was made, how many hits have been shown, and which was the last."""

    seq: BigInt
    shown: Annotated[int, Field(ge=1, le=100_000_000)]
    last: BigInt


@dataclass(frozen=True, slots=True)
class Cut:
    """One page of a ranking. `end` is the number of places up to its last hit, and that hit; None when none follows.

    `collapsed` are the duplicates of each hit that were ranked behind it, as deep as there was need to rank.
    """

    shown: Scored
    collapsed: dict[int, list[int]]
    end: tuple[int, int] | None


def cut_page(scored: Scored, start: int, limit: int, groups: Mapping[int, int]) -> Cut:
    """Return at most `limit` hits from place `start` of `scored` on, of each group only its first of all."""
    first_of: dict[int, int] = {}
    for image_id, _ in scored:
        if image_id in groups:
            first_of.setdefault(groups[image_id], image_id)
    shown: Scored = []
    end = None
    following = False
    for place, (image_id, score) in enumerate(scored[start:], start=start + 1):
        if first_of.get(groups.get(image_id, -1), image_id) != image_id:
            continue
        if len(shown) == limit:
            following = True
            break
        shown.append((image_id, score))
        end = (place, image_id)
    behind: dict[int, list[int]] = {image_id: [] for image_id, _ in shown if image_id in groups}
    for image_id, _ in scored:
        first = first_of.get(groups.get(image_id, -1), image_id)
        if first != image_id and first in behind:
            behind[first].append(image_id)
    return Cut(shown, behind, end if following else None)


class Searcher:
    """Answers `POST /v1/search` and `POST /v1/vectors`."""

    def __init__(
        self, db: Database, generations: Generations, limits: SearchLimits, palettes: ColorIndex | None = None
    ) -> None:
        """Search `db`, the index behind `generations`, and `palettes`, which are read when none are given."""
        self._db, self._generations, self._limits = db, generations, limits
        self._palettes = palettes or ColorIndex(db)

    async def search(self, wanted: Search) -> SearchPage:
        """Return one page of hits.

        With one ranking, `score` is that ranking's own (the cosine, the full-text rank, or `color_score` of the colour
        distance), and pages go on to its end: the whole store by a vector, every picture with a palette by colours, the
        `max_ranked` newest matches by words. Several are fused down to a fixed depth,
        where pages end. Without any, the newest come first.

        FingerprintMismatch for a fingerprint without vectors, InvalidRequest for a vector of another dimension,
        InvalidCursor for a cursor of another query, Unavailable while the index is being rebuilt.
        """
        place = None if wanted.cursor is None else decode_cursor(wanted, wanted.cursor, SearchPlace)
        async with self._db.connection() as conn:
            seq = await _clock(conn) if place is None else place.seq
            rankings = Rankings(conn, self._generations, self._palettes, self._limits, wanted, seq)
            if not wanted.vectors and wanted.words is None and wanted.colors is None:
                return await self._newest(conn, rankings, wanted, place, seq)
            directions = [await self._direction(conn, wanted, number) for number in range(len(wanted.vectors))]
            cut = await self._cut(conn, rankings, wanted, directions, place)
            image_ids = [image_id for image_id, _ in cut.shown]
            parts = await rankings.parts(directions, image_ids)
            records = await fetch_records(conn, image_ids)
        hits = [
            Hit(image=records[image_id], score=score, parts=parts[image_id], collapsed=cut.collapsed.get(image_id, []))
            for image_id, score in cut.shown
            if image_id in records  # else deleted in this very moment
        ]
        following = None if cut.end is None else SearchPlace(seq=seq, shown=cut.end[0], last=cut.end[1])
        return SearchPage(hits=hits, next_cursor=following and encode_cursor(wanted, following))

    async def vectors(self, wanted: VectorsWanted) -> StoredVectors:
        """Return the pictures' vectors; FingerprintMismatch when there are none of that fingerprint at all."""
        async with self._db.connection() as conn:
            generation = await need_generation(conn, wanted.space, wanted.fingerprint)
            rows = await conn.execute(
                "SELECT image_id, vector FROM vectors WHERE generation_id = %s AND image_id = ANY(%s)",
                (generation.id, wanted.image_ids),
            )
            found = {image_id: encode_vector(from_half(raw)) for image_id, raw in await rows.fetchall()}
        return StoredVectors(vectors={image_id: found.get(image_id) for image_id in wanted.image_ids})

    async def _direction(self, conn: Connection, wanted: Search, number: int) -> Direction:
        query = wanted.vectors[number]
        try:
            generation = await need_generation(conn, query.space, query.fingerprint)
        except FingerprintMismatch as error:
            raise FingerprintMismatch(error.detail, field=f"vectors.{number}.fingerprint") from error
        try:
            vector = to_unit(decode_vector(query.vector), generation.dim)
        except InvalidRequest as error:
            raise InvalidRequest(error.detail, field=f"vectors.{number}.vector") from error
        self._generations.need_complete(generation)
        return Direction(number, generation, vector, query.weight)

    async def _cut(
        self,
        conn: Connection,
        rankings: Rankings,
        wanted: Search,
        directions: Sequence[Direction],
        place: SearchPlace | None,
    ) -> Cut:
        """Return the page that begins at `place`, ranked as deep as it takes to fill it."""
        needed = (0 if place is None else place.shown) + wanted.limit + 1
        while True:
            scored = await self._scored(rankings, wanted, directions, needed)
            start = 0
            if place is not None:
                # What was deleted or edited since the last page has moved the rest; the last hit says by how much.
                positions = {image_id: position for position, (image_id, _) in enumerate(scored)}
                start = positions.get(place.last, place.shown - 1) + 1
            groups = {}
            if wanted.collapse is not None:
                groups = await groups_of(conn, wanted.collapse, [image_id for image_id, _ in scored])
            cut = cut_page(scored, start, wanted.limit, groups)
            if cut.end is not None or len(scored) < needed:
                return cut
            needed = max(needed, start) + wanted.limit * (1 if wanted.collapse is None else 2) + 1

    async def _scored(self, rankings: Rankings, wanted: Search, directions: Sequence[Direction], needed: int) -> Scored:
        if len(directions) + (wanted.words is not None) + (wanted.colors is not None) == 1:
            if directions:
                return await rankings.by_vector(directions[0], needed)
            if wanted.words is not None:
                return await rankings.by_words(needed)
            return [(image_id, color_score(distance)) for image_id, distance in await rankings.by_color(needed)]
        # The same depth for every page: the order may not depend on how far somebody has turned the pages.
        depth = self._limits.candidates
        ranked = [(one.weight, (await rankings.by_vector(one, depth))[:depth]) for one in directions]
        if wanted.words is not None:
            ranked.append((wanted.words.weight, await rankings.by_words(depth)))
        if wanted.colors is not None:
            ranked.append((wanted.colors.weight, (await rankings.by_color(depth))[:depth]))
        return fuse((weight, [image_id for image_id, _ in scores]) for weight, scores in ranked)

    async def _newest(
        self, conn: Connection, rankings: Rankings, wanted: Search, place: SearchPlace | None, seq: int
    ) -> SearchPage:
        found = await rankings.newest(None if place is None else place.last, wanted.limit + 1)
        behind = await rankings.behind([image_id for image_id, _ in found]) if wanted.collapse else {}
        more, found = len(found) > wanted.limit, found[: wanted.limit]
        records = await fetch_records(conn, [image_id for image_id, _ in found])
        hits = [
            Hit(image=records[image_id], score=0.0, parts=ScoreParts(), collapsed=behind.get(image_id, []))
            for image_id, _ in found
            if image_id in records
        ]
        shown = len(found) + (0 if place is None else place.shown)
        following = SearchPlace(seq=seq, shown=shown, last=found[-1][1]) if more else None
        return SearchPage(hits=hits, next_cursor=following and encode_cursor(wanted, following))


async def _clock(conn: Connection) -> int:
    row = await (await conn.execute("SELECT seq FROM clock")).fetchone()
    assert row is not None, "the first migration makes the clock's only row"
    return int(row[0])
