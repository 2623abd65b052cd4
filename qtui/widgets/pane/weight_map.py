"""A map of a weight's errors in half blocks: rows of the weight × groups of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from engine.protocol import ErrorMapReady
from engine.report import wording as n
from qtui.views.text import Glyphs, printable
from qtui.widgets.line import Words

T = TypeVar("T")

SHADES, ASCII_SHADES = " ░▒▓█", ".:+*#"
STEPS = 5
"""Shades, of equal parts between the least and the largest error."""
LABEL = 7
WIDEST = 48
"""Columns that a map of few groups is stretched to."""
MOST_LINES = 16
"""Lines of the map at most."""


def map_lines(found: ErrorMapReady, width: int, glyphs: Glyphs) -> list[Words]:
    """The map with its scale; where there is none, why.

    Two rows of cells share a line: where they differ, the half with the larger error is filled. The
    least error is blank. In ASCII each line is one row of cells.
    """
    if found.why:
        return [[(f"no map of weight errors: {printable(found.why)}", "$dim")]]
    halves = 1 if glyphs.ascii else 2
    columns = max(1, min(found.width, width - LABEL - 1))
    rows = _joined(found, min(found.height, halves * MOST_LINES), columns)
    known = [value for row in rows for value in row if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    steps = [[_step(value, low, high) for value in row] for row in rows]
    repeat = max(1, min(WIDEST, width - LABEL - 1) // columns)
    lines: list[Words] = [_title(found, width), _scale(low, high, glyphs)]
    for at in range(0, len(steps), halves):
        first = found.rows * at // len(steps)
        words: Words = [(f"{first:>{LABEL - 1}} ", "$dim")]
        pair = steps[at : at + halves]
        lines.append(words + _merged([_cell(cell, glyphs) for cell in zip(*pair, strict=True)],
                                     repeat))  # fmt: skip
    return lines


def _title(found: ErrorMapReady, width: int) -> Words:
    each = f"groups of {found.group_size}" if found.groups > 1 else "whole rows"
    said = f"weight error of {found.rows:,} rows by {each}"
    used = f" in {printable(found.used)}" if found.used != found.format else ""
    return [(said + (used if len(said + used) <= width else ""), "$dim")]


def _joined(found: ErrorMapReady, height: int, width: int) -> list[list[float]]:
    """Root mean squares of the cells, joined to so many rows and columns."""
    cells = [found.cells[at : at + found.width] for at in range(0, len(found.cells), found.width)]
    rows = [_mean(part) for part in _parts(cells, height)]
    return [[math.sqrt(_only(part)) for part in _parts(row, width)] for row in rows]


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _only(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _parts(values: Sequence[T], count: int) -> list[Sequence[T]]:
    edges = [len(values) * at // count for at in range(count + 1)]
    return [values[a:b] for a, b in pairwise(edges)]


def _step(value: float, low: float, high: float) -> int:
    """The shade of an error, 0 to `STEPS` − 1."""
    if not math.isfinite(value):
        return STEPS - 1
    if not high > low:
        return 0 if high == 0 else STEPS // 2
    return min(STEPS - 1, int(STEPS * (value - low) / (high - low)))


def _cell(steps: tuple[int, ...], glyphs: Glyphs) -> tuple[str, str]:
    """What a cell is drawn with, and its style; two steps are an upper and a lower half."""
    if glyphs.ascii:
        return ASCII_SHADES[steps[0]], f"$heat-{steps[0] + 1}"
    upper, lower = steps[0], steps[-1]
    if upper == lower:
        return SHADES[upper], f"$heat-{upper + 1}"
    more, less = max(upper, lower), min(upper, lower)
    style = f"$heat-{more + 1}"
    if less:
        style += f" on $heat-{less + 1}"
    return "▀" if upper > lower else "▄", style


def _merged(cells: Sequence[tuple[str, str]], repeat: int) -> Words:
    """Cells of one style in a row as one piece."""
    words: Words = []
    for drawn, style in cells:
        if words and words[-1][1] == style:
            words[-1] = words[-1][0] + drawn * repeat, style
        else:
            words.append((drawn * repeat, style))
    return words


def _scale(low: float, high: float, glyphs: Glyphs) -> Words:
    """What the shades stand for."""
    words: Words = [(f"{'':{LABEL}}{n.percent(low)} ", "$dim")]
    shades = ASCII_SHADES if glyphs.ascii else SHADES
    for step in range(STEPS):
        words.append((shades[step] * 2, f"$heat-{step + 1}"))
    return [*words, (f" {n.percent(high)}", "$dim")]
