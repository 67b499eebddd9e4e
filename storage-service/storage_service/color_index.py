"""Palettes in memory, ranked by their distance to the colours of a query: the same order as comparing with every one.

Table look-ups by codes say how close a palette may be at most (`color_bounds`); exact distances are computed for all
that may still be among the best: those whose bound is not above the last exact distance needed.

Memory per picture: 16 bytes of codes, 48 of colours, 17 of ids and numbers; as much again where it has a foreground of
its own. Rows are only ever appended. A palette that changed is a new row, and the old one is dead: so a ranking in a
thread works on arrays that nobody writes to, while others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import structlog
from pixelgate_common.colors import EMPTY_CODE, palette_distances
from pixelgate_common.contracts.color import MAX_COLORS

from storage_service.color_bounds import SLACK, ColorBounds, warm_up
from storage_service.database import Connection, Database
from storage_service.palettes import BATCH, PaletteRows, changed_since, to_lab

log = structlog.get_logger(__name__)
FEWEST = 1024
"""Palettes that are compared exactly at least: it takes a millisecond or two, and often ends the matter."""
_MOST_DEAD = 0.2

Scored = list[tuple[int, float]]
Of = Literal["whole", "foreground"]


@dataclass(frozen=True)
class ColorTerms:
    """The colours of one query: CIELAB (q, 3) and weights (q,), and which palette of a picture counts."""

    labs: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float64]
    of: Of


class _Column:
    """An array that grows at its end; what was read of it is never written again."""

    def __init__(self, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self._array: npt.NDArray[Any] = np.empty((0, *shape), dtype)

    def append(self, at: int, values: npt.NDArray[Any]) -> None:
        needed = at + len(values)
        if needed > len(self._array):
            larger = np.empty((max(needed, len(self._array) * 5 // 4, 1024), *self._array.shape[1:]), self._array.dtype)
            larger[:at] = self._array[:at]
            self._array = larger
        self._array[at:needed] = values

    def head(self, count: int) -> npt.NDArray[Any]:
        return self._array[:count]


class _Palettes:
    """Packed palettes, `count` of them: codes as one contiguous row for each place, as look-ups want them."""

    def __init__(self) -> None:
        self.count = 0
        self._codes = [_Column(np.uint16) for _ in range(MAX_COLORS)]
        self._labs = _Column(np.int16, (MAX_COLORS, 3))

    def append(self, packed: npt.NDArray[Any]) -> None:
        for place, column in enumerate(self._codes):
            column.append(self.count, packed["codes"][:, place])
        self._labs.append(self.count, packed["labs"])
        self.count += len(packed)

    def view(self) -> _PalettesSeen:
        return _PalettesSeen([column.head(self.count) for column in self._codes], self._labs.head(self.count))


@dataclass(frozen=True)
class _PalettesSeen:
    """Palettes at one moment."""

    codes: list[npt.NDArray[np.uint16]]
    labs: npt.NDArray[np.int16]

    def bounds(self, table: ColorBounds, rows: npt.NDArray[np.intp] | slice) -> npt.NDArray[np.float32]:
        parts = [codes[rows] for codes in self.codes]
        bounds = np.empty(len(parts[0]), np.float32)
        for start in range(0, len(bounds), BATCH):
            stacked = np.stack([part[start : start + BATCH] for part in parts])
            bounds[start : start + BATCH] = table.of(stacked)
        return bounds

    def exact(self, terms: ColorTerms, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        codes = np.stack([part[rows] for part in self.codes], axis=1)
        return palette_distances(
            terms.labs, terms.weights, to_lab(self.labs[rows]), (codes != EMPTY_CODE).astype(np.float32)
        )


@dataclass(frozen=True)
class PalettesNow:
    """Every palette at one moment; what it holds does not change any more. `fronts` is -1 without a foreground."""

    ids: npt.NDArray[np.int64]
    seqs: npt.NDArray[np.int64]
    alive: npt.NDArray[np.bool_]
    fronts: npt.NDArray[np.int64]
    whole: _PalettesSeen
    foreground: _PalettesSeen

    def ranked(self, terms: ColorTerms, rows: npt.NDArray[np.intp], limit: int) -> Scored:
        """Return (image id, distance) of the `limit` closest of `rows`, the closest first, equal ones by id.

        Palettes without a colour that counts are left out.
        """
        most = max(limit, FEWEST)
        if len(rows) > most:
            bounds = self._bounds(ColorBounds(terms.labs, terms.weights), terms.of, rows)
            nearest = np.argpartition(bounds, most - 1)[:most]
            exact = self._exact(terms, rows[nearest])
            last = np.partition(exact, limit - 1)[limit - 1]
            if np.isfinite(last):
                # All that may be as close as the last one.
                chosen = np.flatnonzero(bounds <= last + np.float32(SLACK))
                exact = self._exact(terms, rows[chosen])
            else:
                chosen, exact = np.arange(len(rows)), self._exact(terms, rows)
        else:
            chosen, exact = np.arange(len(rows)), self._exact(terms, rows)
        ids = self.ids[rows[chosen]]
        order = np.lexsort((ids, exact))[:limit]
        return [(int(ids[at]), float(exact[at])) for at in order if np.isfinite(exact[at])]

    def rows(self, seq: int | None, image_ids: Collection[int] | None, left_out: Collection[int]) -> Any:
        """Return the rows that a query of the snapshot `seq` may find, of `image_ids` where these are named."""
        wanted = self.alive if seq is None else self.alive & (self.seqs <= seq)
        if image_ids is not None:
            wanted = wanted & np.isin(self.ids, np.fromiter(image_ids, np.int64, len(image_ids)))
        if left_out:
            wanted = wanted & ~np.isin(self.ids, np.fromiter(left_out, np.int64, len(left_out)))
        return np.flatnonzero(wanted)

    def distances(self, terms: ColorTerms, image_ids: Sequence[int]) -> dict[int, float]:
        """Return the distance of each of these pictures that has a palette with a colour that counts."""
        rows = self.rows(None, image_ids, ())
        exact = self._exact(terms, rows)
        return {int(id_): float(d) for id_, d in zip(self.ids[rows], exact, strict=True) if np.isfinite(d)}

    def _bounds(self, table: ColorBounds, of: Of, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        found = self.whole.bounds(table, slice(None) if len(rows) == len(self.ids) else rows)
        if of == "foreground":
            places, fronts = self._fronts(rows)
            found[places] = self.foreground.bounds(table, fronts)
        return found

    def _exact(self, terms: ColorTerms, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        found = self.whole.exact(terms, rows)
        if terms.of == "foreground":
            places, fronts = self._fronts(rows)
            found[places] = self.foreground.exact(terms, fronts)
        return found

    def _fronts(self, rows: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        fronts = self.fronts[rows]
        places = np.flatnonzero(fronts >= 0)
        return places, fronts[places]


class ColorIndex:
    """All palettes of the store, brought up to date from Postgres before each search."""

    def __init__(self, db: Database) -> None:
        """Read from `db`; nothing is read before `now` or `tidy`."""
        self._db = db
        self._busy = asyncio.Lock()
        self._clear()

    def _clear(self) -> None:
        self._count, self._dead = 0, 0
        self._read_to = (-1, -1)
        self._ids, self._seqs, self._fronts = _Column(np.int64), _Column(np.int64), _Column(np.int64)
        self._alive = np.empty(0, np.bool_)
        self._whole, self._foreground = _Palettes(), _Palettes()

    async def now(self, conn: Connection) -> PalettesNow:
        """Return every palette as it stands in what `conn` sees, or a little later."""
        async with self._busy:
            await self._read_on(conn)
            return self._view()

    async def tidy(self) -> None:
        """Read what is new, and forget palettes of pictures that were deleted, here or by another process.

        Until then these cost a little memory; no search shows them, because every hit is looked up in Postgres.
        """
        await asyncio.to_thread(warm_up)
        async with self._busy, self._db.connection() as conn:
            await self._read_on(conn)
            row = await (await conn.execute("SELECT count(*) FROM palettes")).fetchone()
            if row is not None and row[0] < self._count - self._dead:
                await self._forget_deleted(conn)
            if self._dead > _MOST_DEAD * self._count:
                log.info("palettes_read_again", rows=self._count, dead=self._dead)
                self._clear()
                await self._read_on(conn)

    async def _forget_deleted(self, conn: Connection) -> None:
        known = self._ids.head(self._count)
        for start in range(0, self._count, BATCH):
            part = slice(start, min(start + BATCH, self._count))
            rows = await conn.execute("SELECT image_id FROM palettes WHERE image_id = ANY(%s)", (known[part].tolist(),))
            there = np.array([row[0] for row in await rows.fetchall()], np.int64)
            self._kill(self._alive[part] & ~np.isin(known[part], there), part)

    async def _read_on(self, conn: Connection) -> None:
        """Read the rows behind the last change that is known; commits follow the clock, so none turns up before it."""
        while True:
            rows = await changed_since(conn, *self._read_to)
            if len(rows.ids):
                self._append(rows)
                self._read_to = (int(rows.changed[-1]), int(rows.ids[-1]))
            if len(rows.ids) < BATCH:
                return

    def _append(self, rows: PaletteRows) -> None:
        again = rows.ids[rows.changed > rows.seqs]
        if len(again) and self._count:
            known = slice(0, self._count)
            self._kill(self._alive[known] & np.isin(self._ids.head(self._count), again), known)
        fronts = np.full(len(rows.ids), -1, np.int64)
        own = np.flatnonzero(rows.has_foreground)
        fronts[own] = self._foreground.count + np.arange(len(own))
        self._ids.append(self._count, rows.ids)
        self._seqs.append(self._count, rows.seqs)
        self._fronts.append(self._count, fronts)
        self._alive = np.concatenate((self._alive, np.ones(len(rows.ids), np.bool_)))
        self._whole.append(rows.whole)
        self._foreground.append(rows.foreground[own])
        self._count += len(rows.ids)

    def _kill(self, dead: npt.NDArray[np.bool_], part: slice) -> None:
        if dead.any():
            alive = self._alive.copy()  # a ranking may be reading the old one
            alive[part] &= ~dead
            self._alive = alive
            self._dead += int(dead.sum())

    def _view(self) -> PalettesNow:
        count = self._count
        return PalettesNow(
            ids=self._ids.head(count),
            seqs=self._seqs.head(count),
            alive=self._alive,
            fronts=self._fronts.head(count),
            whole=self._whole.view(),
            foreground=self._foreground.view(),
        )
