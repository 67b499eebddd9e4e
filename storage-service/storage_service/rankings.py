"""Rankings of pictures by one vector, by words, by colours, or by arrival, under one filter and snapshot of the clock.

The vector index, and the palettes in memory, only propose. Every picture proposed is joined with its row and its
vector's or palette's row, and the filter is applied there again: a stale or orphaned point can cost a little time but
never be shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pixelgate_common.contracts.storage import ScoreParts, Search
from pixelgate_common.vectors import FloatVector
from psycopg import sql

from storage_service.color_index import ColorIndex, ColorTerms, PalettesNow
from storage_service.database import Connection
from storage_service.duplicates import not_behind_a_peer
from storage_service.filters_sql import Parameters, filter_sql
from storage_service.generations import Generation, Generations
from storage_service.limits import SearchLimits
from storage_service.planning import Plan, fitting_ids, make_plan
from storage_service.vectors.halves import from_half
from storage_service.words import compile_words, rank_by_words

SLACK = 8
"""Candidates asked for beyond those needed, for the few that are gone, too new, or fit no longer."""
GROWTH = 4
EXACT_BEYOND = 1_000
"""Rankings deeper than this are made without an approximate graph, which would be slower there and miss some."""

Scored = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Direction:
    """One vector to rank by, of length 1; `number` is its place among the query's vectors."""

    number: int
    generation: Generation
    vector: FloatVector
    weight: float


class Rankings:
    """The rankings that one search is made of."""

    def __init__(
        self,
        conn: Connection,
        generations: Generations,
        palettes: ColorIndex,
        limits: SearchLimits,
        wanted: Search,
        seq: int,
    ) -> None:
        """Rank for `wanted` over what had been added when the clock stood at `seq`."""
        self._color_index = palettes
        self._palettes: PalettesNow | None = None
        self._palette_rows: Any = None
        self._all_fit = True
        self._checked_by_color: dict[int, bool] = {}
        self._conn, self._index, self._limits = conn, generations.index, limits
        self._wanted, self._seq = wanted, seq
        self._plan: Plan | None = None
        self._words: str | None = None
        self._word_ranks: dict[int, float] = {}
        self._words_cut_off = False
        self._cosines: dict[int, dict[int, float]] = {}  # by the direction's place among the query's vectors

    async def by_vector(self, direction: Direction, needed: int) -> Scored:
        """Return (image id, cosine), the best first: at least `needed` of them, or all that there are."""
        if self._plan is None:
            self._plan = await make_plan(
                self._conn, self._wanted.filter, self._wanted.exclude_ids, self._limits.max_filter_ids
            )
        if self._plan.nothing_fits:
            return []
        limit = needed + SLACK if self._plan.complete else needed * GROWTH
        checked: dict[int, bool] = {}
        while True:
            proposed = await self._index.search(
                direction.generation.id,
                direction.vector,
                limit,
                self._plan.condition,
                exact=limit > EXACT_BEYOND,
            )
            unchecked = [image_id for image_id, _ in proposed if image_id not in checked]
            confirmed = await self._confirm(direction.generation, unchecked)
            checked |= {image_id: image_id in confirmed for image_id in unchecked}
            found = [(image_id, _cosine(score)) for image_id, score in proposed if checked[image_id]]
            if len(proposed) >= limit:
                # Of those with the very last score, the index may have left some out.
                last = _cosine(proposed[-1][1])
                found = [(image_id, score) for image_id, score in found if score > last]
                if len(found) < needed:
                    limit *= GROWTH
                    continue
            self._cosines[direction.number] = dict(found)
            return sorted(found, key=lambda item: (-item[1], item[0]))

    async def _confirm(self, generation: Generation, image_ids: Sequence[int]) -> set[int]:
        if not image_ids:
            return set()
        parameters = Parameters()
        query = sql.SQL(
            "SELECT i.id FROM images i JOIN vectors v ON v.image_id = i.id AND v.generation_id = {}"
            " WHERE i.id = ANY({}::bigint[]) AND v.seq <= {} AND {}"
        ).format(
            parameters.add(generation.id),
            parameters.add(list(image_ids)),
            parameters.add(self._seq),
            self._where(parameters),
        )
        return {row[0] for row in await (await self._conn.execute(query, parameters, prepare=False)).fetchall()}

    async def by_color(self, needed: int) -> Scored:
        """Return (image id, colour distance), the closest first: at least `needed` of them, or all that there are."""
        terms = self._color_terms()
        if self._palettes is None:
            self._palettes = await self._color_index.now(self._conn)
            fitting = None
            if self._wanted.filter is not None:
                fitting = await fitting_ids(self._conn, self._wanted.filter, self._limits.max_filter_ids)
            self._all_fit = self._wanted.filter is None or fitting is not None
            self._palette_rows = self._palettes.rows(self._seq, fitting, self._wanted.exclude_ids)
        # A filter that very many pictures fit is applied to what is found.
        limit = needed + SLACK if self._all_fit else needed * GROWTH
        while True:
            proposed = await asyncio.to_thread(self._palettes.ranked, terms, self._palette_rows, limit)
            unchecked = [image_id for image_id, _ in proposed if image_id not in self._checked_by_color]
            there = await self._confirm_palettes(unchecked)
            self._checked_by_color |= {image_id: image_id in there for image_id in unchecked}
            found = [(image_id, distance) for image_id, distance in proposed if self._checked_by_color[image_id]]
            if len(found) >= needed or len(proposed) < limit:
                return found
            limit *= GROWTH

    def _color_terms(self) -> ColorTerms:
        colors = self._wanted.colors
        assert colors is not None
        return ColorTerms(
            np.array([color.lab for color in colors.colors], np.float32),
            np.array([color.weight for color in colors.colors], np.float64),
            colors.of,
        )

    async def _confirm_palettes(self, image_ids: Sequence[int]) -> set[int]:
        if not image_ids:
            return set()
        parameters = Parameters()
        query = sql.SQL(
            "SELECT i.id FROM images i JOIN palettes p ON p.image_id = i.id"
            " WHERE i.id = ANY({}::bigint[]) AND p.seq <= {} AND {}"
        ).format(parameters.add(list(image_ids)), parameters.add(self._seq), self._where(parameters))
        return {row[0] for row in await (await self._conn.execute(query, parameters, prepare=False)).fetchall()}

    def _where(self, parameters: Parameters) -> sql.Composable:
        """Return the filter with the pictures that are left out, on the row `i` of `images`."""
        where = filter_sql(self._wanted.filter, parameters)
        if not self._wanted.exclude_ids:
            return where
        left_out = parameters.add(self._wanted.exclude_ids)
        return sql.SQL("({} AND i.id <> ALL({}::bigint[]))").format(where, left_out)

    async def by_words(self, needed: int) -> Scored:
        """Return (image id, rank), the best first: at most `needed`; none when there is no word to search for."""
        assert self._wanted.words is not None
        self._words = await compile_words(self._conn, self._wanted.words.text, self._limits.max_words)
        if self._words is None:
            return []
        parameters = Parameters()
        where = sql.SQL("(i.seq <= {} AND {})").format(parameters.add(self._seq), self._where(parameters))
        found = await rank_by_words(self._conn, self._words, where, parameters, needed, self._limits.max_ranked)
        self._word_ranks, self._words_cut_off = dict(found), len(found) >= min(needed, self._limits.max_ranked)
        return found

    async def newest(self, before_seq: int | None, needed: int) -> list[tuple[int, int]]:
        """Return (image id, seq) of at most `needed` pictures that were added before `before_seq`, the newest first."""
        parameters = Parameters()
        before = self._seq + 1 if before_seq is None else before_seq
        found = sql.SQL("SELECT i.id, i.seq FROM images i WHERE i.seq < {} AND {}").format(
            parameters.add(before), self._where(parameters)
        )
        alone: sql.Composable = sql.SQL("TRUE")
        if self._wanted.collapse is not None:
            alone = not_behind_a_peer(
                sql.Literal(self._wanted.collapse), parameters.add(self._seq), self._where(parameters)
            )
        query = sql.SQL("SELECT o.id, o.seq FROM ({}) AS o WHERE {} ORDER BY o.seq DESC LIMIT {}").format(
            found, alone, parameters.add(needed)
        )
        return [
            (row[0], row[1]) for row in await (await self._conn.execute(query, parameters, prepare=False)).fetchall()
        ]

    async def behind(self, image_ids: Sequence[int]) -> dict[int, list[int]]:
        """Return, of each picture, the earlier ones of its group that fit the search too, the latest first."""
        parameters = Parameters()
        query = sql.SQL(
            "SELECT m.image_id, i.id FROM duplicate_members m JOIN duplicate_members n USING (tier, group_id)"
            " JOIN images i ON i.id = n.image_id JOIN images o ON o.id = m.image_id"
            " WHERE m.tier = {} AND m.image_id = ANY({}::bigint[]) AND i.seq < o.seq AND {} ORDER BY i.seq DESC"
        ).format(sql.Literal(self._wanted.collapse), parameters.add(list(image_ids)), self._where(parameters))
        behind: dict[int, list[int]] = {}
        for first, image_id in await (await self._conn.execute(query, parameters, prepare=False)).fetchall():
            behind.setdefault(first, []).append(image_id)
        return behind

    async def parts(self, directions: Sequence[Direction], image_ids: Sequence[int]) -> dict[int, ScoreParts]:
        """Return what is known of each picture by each ranking, also where a ranking had not come down to it.

        With several vectors, `vector` is the mean of the cosines by weight, over those that the picture has.
        """
        if not image_ids:
            return {}
        cosines = await self._all_cosines(directions, image_ids)
        ranks = await self._ranks_by_words(image_ids)
        distances: dict[int, float] = {}
        if self._palettes is not None:
            distances = await asyncio.to_thread(self._palettes.distances, self._color_terms(), image_ids)
        parts = {}
        for image_id in image_ids:
            known = [
                (one.weight, cosines[one.number][image_id]) for one in directions if image_id in cosines[one.number]
            ]
            total = sum(weight for weight, _ in known)
            mean = sum(weight * cosine for weight, cosine in known) / total if known else None
            parts[image_id] = ScoreParts(vector=mean, words=ranks.get(image_id), color=distances.get(image_id))
        return parts

    async def _all_cosines(
        self, directions: Sequence[Direction], image_ids: Sequence[int]
    ) -> dict[int, dict[int, float]]:
        """Return the cosine of each picture in each direction; what no ranking has given comes from Postgres."""
        cosines = {one.number: dict(self._cosines.get(one.number, {})) for one in directions}
        wanted = {one.number: [id_ for id_ in image_ids if id_ not in cosines[one.number]] for one in directions}
        if not any(wanted.values()):
            return cosines
        rows = await self._conn.execute(
            "SELECT generation_id, image_id, vector FROM vectors WHERE generation_id = ANY(%s) AND image_id = ANY(%s)",
            (
                list({one.generation.id for one in directions}),
                list({image_id for missing in wanted.values() for image_id in missing}),
            ),
        )
        for generation_id, image_id, raw in await rows.fetchall():
            vector = from_half(raw)
            for one in directions:
                if one.generation.id == generation_id:
                    cosines[one.number].setdefault(image_id, _cosine(float(np.dot(one.vector, vector))))
        return cosines

    async def _ranks_by_words(self, image_ids: Sequence[int]) -> dict[int, float]:
        if self._words is None or not self._words_cut_off:
            return self._word_ranks
        parameters = Parameters()
        where = sql.SQL("i.id = ANY({}::bigint[])").format(parameters.add(list(image_ids)))
        most = len(image_ids)
        return dict(await rank_by_words(self._conn, self._words, where, parameters, most, most))


def _cosine(score: float) -> float:
    # A vector kept as float16 has a length of 1 ± 0.0001, so that a product can come out just above 1.
    return max(-1.0, min(1.0, score))
