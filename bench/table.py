"""The table that every benchmark prints."""

from __future__ import annotations

from collections.abc import Sequence


def show(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print `rows` under `head`, columns aligned, the first one to the left and the others to the right."""
    cells = [list(head), *([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        first, *rest = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]), flush=True)
        if number == 0:
            print("  ".join("-" * width for width in widths), flush=True)
