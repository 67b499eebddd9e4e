"""The colours that a query asks for: named ones, a picture's palette, or the complements of these.

A picture's palette counts as its colours, each with its share as weight. `complementary` turns every colour by 180° of
hue in HSV; greys have no hue and are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pixelgate_common.colors import complement, parse_color, srgb_to_lab
from pixelgate_common.contracts.color import Color
from pixelgate_common.contracts.storage import ColorOfQuery, ColorQuery, PaletteColor
from pixelgate_common.errors import InvalidRequest

from gateway.analyst import only
from gateway.clients.color import ColorClient
from gateway.clients.inner import BadAnswer
from gateway.clients.storage import StorageClient
from gateway.problems import about
from gateway.query import Page, Term

MAX_COLORS = 64
Lab = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One colour, as it is shown and in CIELAB, and how much it counts."""

    rgb: tuple[int, int, int]
    lab: Lab
    weight: float


class ColorQueries:
    """Turns terms into colours."""

    def __init__(self, storage: StorageClient, color: ColorClient, weight: float) -> None:
        """Palettes come from `storage`, and from `color` where there is none yet; `weight` is the ranking's."""
        self._storage, self._color, self._weight = storage, color, weight

    async def compose(
        self, terms: Mapping[int, Term], page: Page, upload: tuple[bytes, float] | None = None
    ) -> ColorQuery | None:
        """Return the query that the colour terms (by their places) and an uploaded picture make; None without any.

        Raises `InvalidRequest` naming the field, 404 for an unknown picture.
        """
        if not terms and upload is None:
            for name, usual in (("mode", "similar"), ("color_of", "whole")):
                if getattr(page, name) != usual:
                    raise InvalidRequest(f"{name} is about colours: add a term with color or palette_of.", field=name)
            return None
        for place, term in terms.items():
            if term.weight < 0:
                raise InvalidRequest("A colour's weight must be above 0.", field=f"terms.{place}.weight")
        parts = [self._of_term(place, term, page.color_of == "foreground") for place, term in terms.items()]
        if upload is not None:
            parts.append(self._of_upload(*upload, page.color_of == "foreground"))
        found = [one for part in await asyncio.gather(*parts) for one in part]
        if page.mode == "complementary":
            found = [turned for one in found if (turned := _turned(one)) is not None]
            if not found:
                raise InvalidRequest("All these colours are greys, which have no complement.", field="mode")
        if len(found) > MAX_COLORS:
            raise InvalidRequest(
                f"A search has at most {MAX_COLORS} colours, those of palettes included.", field="terms"
            )
        colors = [ColorOfQuery(lab=one.lab, weight=one.weight) for one in found]
        return ColorQuery(colors=colors, of=page.color_of, weight=self._weight)

    async def _of_term(self, place: int, term: Term, foreground: bool) -> list[_Wanted]:
        if term.color is not None:
            rgb = parse_color(term.color)
            return [_Wanted(rgb, _lab(rgb), term.weight)]
        if term.palette_of is None:
            return []
        field = f"terms.{place}.palette_of"
        with about(field):
            record = await self._storage.record(term.palette_of)
            palette: Sequence[Color | PaletteColor] = (foreground and record.foreground_palette) or record.palette
            if not palette:
                # Its stage has not come to it yet: the preview has the same colours.
                palette = await self._palette(await self._storage.file(record.id, "preview"), field, foreground)
        return _weighted(palette, term.weight)

    async def _of_upload(self, data: bytes, weight: float, foreground: bool) -> list[_Wanted]:
        return _weighted(await self._palette(data, "image", foreground), weight)

    async def _palette(self, data: bytes, field: str, foreground: bool) -> list[Color]:
        item = only((await self._color.palettes([data])).items, field)
        palette = (foreground and item.foreground) or item.palette
        if not palette:
            raise BadAnswer("color-service answered with neither colours nor a problem.")
        return palette


def _weighted(palette: Sequence[Color | PaletteColor], weight: float) -> list[_Wanted]:
    return [_Wanted(parse_color(color.hex), color.lab, color.share * weight) for color in palette]


def _turned(one: _Wanted) -> _Wanted | None:
    turned = complement(one.rgb)
    return None if turned is None else _Wanted(turned, _lab(turned), one.weight)


def _lab(rgb: tuple[int, int, int]) -> Lab:
    light, a, b = (float(value) for value in srgb_to_lab(np.array(rgb, dtype=np.float64)))
    return light, a, b
