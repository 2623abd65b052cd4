"""A layer's weights as a plot of characters: bars, lines at ±σ, and the grid of a format."""

from __future__ import annotations

import math
from itertools import groupby
from typing import NamedTuple

from engine.formats.spacing import evenly_spaced
from engine.protocol import HistogramReady
from engine.report.wording import short, significant
from qtui.views.text import Glyphs, fit, printable
from qtui.widgets.line import Words

LEAST = (12, 6)
"""Columns and lines below which there is no plot."""
FIXED_SIGMA = 3.0
"""A line that is always drawn; the settings' own may lie elsewhere."""

BAR, LINE, GRID, RULE = "$primary", "$finding", "bold $accent", "$dim"


class Marks(NamedTuple):
    """Characters of the lines and of the axis."""

    near: str
    """The line at ±3σ."""
    far: str
    """The line at the settings' σ."""
    axis: tuple[str, str, str]
    """The axis with no level of the grid, with one, with more than one in a cell."""


FINE = Marks("┊", "│", ("─", "┴", "╨"))
COARSE = Marks(":", "|", ("-", "'", '"'))


def column(value: float, found: HistogramReady, width: int) -> int:
    """The column that a weight's value falls into; outside of ``0 … width − 1`` beyond the ends."""
    span = found.high - found.low
    if not span > 0:
        return 0
    at = math.floor((value - found.low) / span * width)
    return width - 1 if value == found.high else at


def plot(
    found: HistogramReady,
    width: int,
    height: int,
    *,
    sigma: float,
    by_log: bool,
    grid: bool,
    note: str,
    glyphs: Glyphs,
) -> list[Words]:
    """Exactly ``height`` lines of ``width`` cells: bars, axis, labels, caption.

    Args:
        found: the counts; at least one bin.
        width: cells, at least `LEAST`.
        height: lines, at least `LEAST`.
        sigma: the settings' own; lines are drawn there and at 3σ.
        by_log: whether heights go with the logarithm of the counts.
        grid: whether the grid is that of the format the layer holds, and is drawn.
        note: shown before the caption.
        glyphs: which characters may be drawn.
    """
    marks = COARSE if glyphs.ascii else FINE
    rows = bars(found.counts, width, height - 3, by_log=by_log, ascii=glyphs.ascii)
    styles = [[BAR] * width for _ in rows]
    places = _lines(found, sigma, width)
    for place in places:
        for row, style in zip(rows, styles, strict=True):
            row[place.column] = marks.far if place.settings else marks.near
            style[place.column] = LINE
    drawn = [_joined(row, style) for row, style in zip(rows, styles, strict=True)]
    levels = [0] * width
    for value in found.grid if grid else []:
        if 0 <= (at := column(value, found, width)) < width:
            levels[at] += 1
    axis = [marks.axis[min(count, 2)] for count in levels]
    drawn.append(_joined(axis, [GRID if count else RULE for count in levels]))
    drawn.append(_labels(found, places, sigma, width, glyphs))
    drawn.append(_caption(found, width, grid, note, glyphs))
    return drawn


class _Place(NamedTuple):
    column: int
    sign: int
    times: float
    settings: bool


def _lines(found: HistogramReady, sigma: float, width: int) -> list[_Place]:
    """Where the lines go, the settings' own first: they win a column that both fall into."""
    wanted = [(sigma, True)] + ([(FIXED_SIGMA, False)] if sigma != FIXED_SIGMA else [])
    places: list[_Place] = []
    for times, settings in wanted:
        for sign in (-1, 1):
            at = found.mean + sign * times * found.std
            if found.std > 0 and found.low < at < found.high:
                place = _Place(column(at, found, width), sign, times, settings)
                if all(place.column != other.column for other in places):
                    places.append(place)
    return places


def bars(
    counts: list[int], width: int, height: int, *, by_log: bool, ascii: bool
) -> list[list[str]]:
    """Counts as bars by plotext: ``height`` rows of ``width`` characters.

    There are two bars a cell where blocks can be drawn. Several bins of one bar show the largest of
    them, so that a lone weight far out is never averaged away; a bin with nothing in it stays
    empty, and one with a single weight does not.
    """
    # Imported when the first plot is drawn: the first frame does not wait for it.
    import plotext as plt

    steps = width if ascii else 2 * width
    values = []
    for step in range(steps):
        first, last = step * len(counts) // steps, (step + 1) * len(counts) // steps
        values.append(float(max(counts[first : max(last, first + 1)])))
    heights = [math.log10(1 + value) if by_log else value for value in values]
    top = max(heights) or 1.0
    plt.clear_figure()
    plt.limit_size(False, False)
    plt.plot_size(width, height)
    plt.theme("clear")
    plt.xaxes(False, False)
    plt.yaxes(False, False)
    plt.xticks([], [])
    plt.yticks([], [])
    plt.xlim(0, max(steps - 1, 1))
    plt.ylim(0, top * 1.02)
    # Empty bins go below the axis, so that a single weight is visible.
    plt.plot(
        range(steps),
        [value if value > 0 else -top for value in heights],
        marker="#" if ascii else "hd",
        fillx=True,
    )
    lines = plt.uncolorize(plt.build()).split("\n")[:height]
    plt.clear_figure()
    return [list(line.ljust(width)[:width]) for line in lines]


def _joined(characters: list[str], styles: list[str]) -> Words:
    """Characters with a style each, as pieces of one style."""
    words: Words = []
    at = 0
    for style, run in groupby(styles):
        length = len(list(run))
        words.append(("".join(characters[at : at + length]), style))
        at += length
    return words


def _labels(
    found: HistogramReady, places: list[_Place], sigma: float, width: int, glyphs: Glyphs
) -> Words:
    """What the lines and the ends stand for; a label for which there is no room is left out.

    The outer line's label ends at its line and the inner one's begins there, so that both are
    read where the two lie close together.
    """
    row, styles = [" "] * width, [RULE] * width
    outer = max(sigma, FIXED_SIGMA)
    wanted: list[tuple[int, str, str]] = []
    for place in places:
        label = f"{'-' if place.sign < 0 else '+'}{_times(place.times)}{glyphs.sigma}"
        if sigma == FIXED_SIGMA:
            start = place.column - len(label) // 2
        elif (place.times == outer) == (place.sign < 0):
            start = place.column - len(label) + 1
        else:
            start = place.column
        wanted.append((start, label, LINE))
    low, high = significant(found.low), significant(found.high)
    wanted += [(0, low, RULE), (width - len(high), high, RULE)]
    for start, label, style in wanted:
        end = start + len(label)
        if start < 0 or end > width or "".join(row[max(0, start - 1) : end + 1]).strip():
            continue
        row[start:end], styles[start:end] = list(label), [style] * len(label)
    return _joined(row, styles)


def _times(value: float) -> str:
    return f"{value:g}" if value < 100 else short(value)


def _caption(found: HistogramReady, width: int, grid: bool, note: str, glyphs: Glyphs) -> Words:
    """The grid in words, then the spread and the range; as much as there is room for."""
    pieces: list[Words] = [[(note, "$dim")]] if note else []
    if grid and found.format:
        stepped = math.isfinite(found.step) and evenly_spaced(found.format)
        said = f" step {significant(found.step)}" if stepped else ""
        if found.grid:
            levels = "1 level" if len(found.grid) == 1 else f"{len(found.grid)} levels"
            said = f" {levels}" + ("," * bool(said)) + said
        else:
            many = math.isfinite(found.step)
            said = f"{said}, too many levels to draw".removeprefix("" if said else ",")
            said = said if many else " has no fixed levels"
        pieces.append([(printable(found.format), "bold"), (said, "")])
    pieces.append([("std ", "$dim"), (significant(found.std), "")])
    ends = f"{significant(found.low)} {glyphs.ellipsis} {significant(found.high)}"
    pieces.append([("range ", "$dim"), (ends, "")])
    words: Words = []
    for piece in pieces:
        joined = [*words, ("  ", ""), *piece] if words else piece
        if sum(len(text) for text, _ in joined) <= width:
            words = joined
    if not words:
        words = [(fit("".join(text for text, _ in pieces[0]), width, glyphs), "$dim")]
    return words
