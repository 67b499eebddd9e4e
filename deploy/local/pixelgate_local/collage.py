"""Draws `demo.png`: one row per search, what was asked first, then the hits in the order of their rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL = 210
GAP = 18
MARGIN = 48
QUERY_WIDTH = 270
LABEL_HEIGHT = 72
HEADER_HEIGHT = 124
SCALE = 2
"""Drawn twice as large and scaled down, so that round corners and slanted lines come out smooth."""

PAPER, INK, MUTED, LINE = "#f7f6f3", "#1d2430", "#6c7480", "#e2e0da"
ACCENT, RIGHT, CARD = "#3257d6", "#2f8f4e", "#ffffff"


@dataclass(frozen=True)
class Hit:
    """One picture that was found: its pixels, two lines of text, and whether it shows what was asked (if known)."""

    picture: Image.Image
    title: str
    detail: str
    is_right: bool | None


@dataclass(frozen=True)
class Row:
    """One search: the words or the picture that was asked, a note on it, and the hits, best first."""

    words: str | None
    picture: Image.Image | None
    note: str
    hits: Sequence[Hit]


def draw_collage(title: str, subtitle: str, rows: Sequence[Row], footer: str) -> Image.Image:
    """Return the picture of all `rows`; RGB, some 1,500 pixels wide with five hits a row."""
    columns = max((len(row.hits) for row in rows), default=0)
    width = 2 * MARGIN + QUERY_WIDTH + columns * (CELL + GAP) + GAP
    row_height = CELL + LABEL_HEIGHT + GAP
    height = HEADER_HEIGHT + len(rows) * row_height + MARGIN + 8
    page = _Page(width, height)
    page.text((MARGIN, 36), title, 38, INK)
    page.text((MARGIN, 86), subtitle, 19, MUTED)
    for number, row in enumerate(rows):
        top = HEADER_HEIGHT + number * row_height
        page.line((MARGIN, top), (width - MARGIN, top), LINE)
        _draw_row(page, row, top + GAP)
    page.text((MARGIN, height - MARGIN + 6), footer, 16, MUTED)
    return page.finish()


def _draw_row(page: _Page, row: Row, top: int) -> None:
    if row.picture is not None:
        page.picture(row.picture, (MARGIN, top), CELL, frame=ACCENT)
        page.text((MARGIN, top + CELL + 8), row.note, 16, ACCENT)
    else:
        page.text((MARGIN, top + 4), row.note, 16, ACCENT)
        page.wrapped((MARGIN, top + 34), f"“{row.words}”", 30, INK, QUERY_WIDTH - GAP, CELL)
    left = MARGIN + QUERY_WIDTH + GAP
    for place, hit in enumerate(row.hits):
        x = left + place * (CELL + GAP)
        page.picture(hit.picture, (x, top), CELL, frame=None)
        page.text((x, top + CELL + 8), f"{place + 1}", 17, ACCENT)
        page.text((x + 20, top + CELL + 8), hit.title, 17, INK)
        if hit.is_right:
            page.tick((x + CELL - 20, top + CELL + 9), RIGHT)
        page.wrapped((x, top + CELL + 30), hit.detail, 14, MUTED, CELL, 34)
    if not row.hits:
        page.text((left, top + 4), "nothing was found", 17, MUTED)


class _Page:
    """A sheet that is drawn at `SCALE` and measured in final pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """Return the page in its final size."""
        return self._image.reduce(SCALE)

    def text(self, at: tuple[int, int], text: str, size: int, colour: str) -> None:
        """Write one line whose upper left corner is `at`."""
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, fill=colour, font=_font(size))

    def wrapped(self, at: tuple[int, int], text: str, size: int, colour: str, width: int, height: int) -> None:
        """Write `text` in as many lines as fit into `width` × `height`; what does not fit ends in an ellipsis."""
        font, line_height = _font(size), round(size * 1.22)
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width * SCALE:
                lines.append(word)
            else:
                lines[-1] = longer
        fitting = max(1, height // line_height)
        if len(lines) > fitting:
            lines = lines[:fitting]
            while font.getlength(f"{lines[-1]} …") > width * SCALE and " " in lines[-1]:
                lines[-1] = lines[-1].rpartition(" ")[0]
            lines[-1] += " …"
        for number, line in enumerate(lines):
            self.text((at[0], at[1] + number * line_height), line, size, colour)

    def line(self, start: tuple[int, int], end: tuple[int, int], colour: str) -> None:
        """Draw a thin line."""
        self._draw.line([_scaled(start), _scaled(end)], fill=colour, width=SCALE)

    def tick(self, at: tuple[int, int], colour: str) -> None:
        """Draw a tick mark of 16 pixels."""
        x, y = at
        points = [_scaled((x + 1, y + 8)), _scaled((x + 6, y + 13)), _scaled((x + 15, y + 2))]
        self._draw.line(points, fill=colour, width=3 * SCALE, joint="curve")

    def picture(self, picture: Image.Image, at: tuple[int, int], side: int, frame: str | None) -> None:
        """Show all of `picture` on a card of `side` × `side` with round corners, framed for a query."""
        card = Image.new("RGB", (side * SCALE, side * SCALE), CARD)
        inside = (side - (16 if frame else 8)) * SCALE
        fitted = ImageOps.contain(picture.convert("RGB"), (inside, inside), Image.Resampling.LANCZOS)
        card.paste(fitted, ((card.width - fitted.width) // 2, (card.height - fitted.height) // 2))
        mask = Image.new("L", card.size, 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, card.width - 1, card.height - 1), 12 * SCALE, fill=255)
        self._image.paste(card, _scaled(at), mask)
        x, y = _scaled(at)
        self._draw.rounded_rectangle(
            (x, y, x + card.width - 1, y + card.height - 1),
            12 * SCALE,
            outline=frame or LINE,
            width=(5 if frame else 1) * SCALE,
        )


def _scaled(at: tuple[int, int]) -> tuple[int, int]:
    return at[0] * SCALE, at[1] * SCALE


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font: no font file has to be on the machine."""
    font = ImageFont.load_default(size * SCALE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType cannot draw this"
    return font
