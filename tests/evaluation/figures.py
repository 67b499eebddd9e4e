"""A measured number beside its aim, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured number; `aim` is what it should reach at least, None where none was set."""

    name: str
    reached: float
    aim: float | None
    cases: int
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the aim is reached; a figure without one cannot miss it."""
        return self.aim is None or self.reached >= self.aim


def table(figures: Sequence[Figure]) -> str:
    """Return the figures in aligned columns: figure, reached, aim, cases, ok."""
    head = ("figure", "reached", "aim", "cases", "ok?")
    rows = [
        (
            figure.name,
            f"{figure.reached:.4f}",
            "" if figure.aim is None else f">= {figure.aim:g}",
            str(figure.cases),
            "" if figure.aim is None else "yes" if figure.ok else "NO",
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    aligned = ["<", ">", "<", ">", "<"]
    lines = []
    for row, figure in zip([head, *rows], [None, *figures], strict=True):
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)]
        lines.append(("  ".join(cells) + (f"  {figure.note}" if figure and figure.note else "")).rstrip())
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
