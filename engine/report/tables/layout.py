"""Aligned columns, name-value lines, paragraphs."""

from __future__ import annotations

from collections.abc import Sequence

from engine.report.characters import cell_width, padded, printable


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> str:
    """Rows under headings, every column as wide as its widest cell.

    Args:
        headings: one per column.
        rows: cells of each; control characters are escaped.
        left: columns of words, aligned left; figures are aligned right.
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
    """Name and value on each line, values aligned."""
    width = max(cell_width(name) for name, _ in lines)
    return "\n".join(f"{padded(name, width)}  {printable(value)}" for name, value in lines)


def paragraphs(*texts: str) -> str:
    """Texts separated by an empty line; empty ones are left out."""
    return "\n\n".join(text for text in texts if text) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|" else char for char in text)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, code: bool = False) -> str:
    """A table as Markdown has it; control characters and marks of Markdown are escaped.

    Args:
        headings: one per column, as they are.
        rows: cells of each.
        code: whether the first cell of each row is escaped already.
    """
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for row in rows:
        cells = [
            cell if code and at == 0 else escaped(printable(cell)) for at, cell in enumerate(row)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
