"""Columns that line up, values beside their names, paragraphs."""

from __future__ import annotations

from collections.abc import Sequence

from engine.report.characters import cell_width, padded, printable


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> str:
    """Rows under headings, every column as wide as its widest cell.

    Args:
        headings: one a column.
        rows: cells of each; control characters are written out.
        left: columns that are words, set to the left; figures stand to the right.
    """
    cells = [[printable(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(map(cell_width, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            padded(cell, width, left=at in left)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def named(lines: Sequence[Sequence[str]]) -> str:
    """Values beside their names."""
    width = max(cell_width(name) for name, _ in lines)
    return "\n".join(f"{padded(name, width)}  {printable(value)}" for name, value in lines)


def paragraphs(*texts: str) -> str:
    """Texts with an empty line between them; empty ones are left out."""
    return "\n\n".join(text for text in texts if text) + "\n"
