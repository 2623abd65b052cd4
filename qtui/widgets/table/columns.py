"""The columns of the layer table, made from the figures; `fit_columns` chooses those for a width.

The least needed are the first to go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from rich.cells import cell_len

from engine.protocol import ExpertsReady
from engine.report.figures import Column, Context, Figure, Reader, figure
from engine.report.figures.quantity import WORD
from engine.report.figures.registry import column_figures
from engine.session import Session
from engine.session.state import kept_format, own_format
from qtui.views.text import fit, short_name
from qtui.widgets.table.cells import KL, Drawer, TableStyle, drawer, plain_drawer
from qtui.widgets.table.headings import heading, kl_titles

GUTTER = 4
"""Cells before the name: cursor or scope, mark, finding, sign of a fused row."""
LEAST_BAR, FAIR_BAR, MOST_BAR = 6, 16, 48
"""Width of the KL's bar at least, before lesser columns are drawn, and at most."""
LESSER = 4
"""Columns of this rank or above give way to a fair bar, and to whole names and formats."""
MOST_TEXT = 40
"""Cells of a name or a format at most."""


class TableColumn(NamedTuple):
    """A figure as a column."""

    id: str
    """The figure's."""
    figure: Figure
    column: Column
    draw: Drawer
    plain: bool
    """Whether its quantity says how it is drawn."""

    def first(self, *, falling: bool) -> str:
        """Which values come first, in a word."""
        if self.figure.quantity is WORD:
            return "last" if falling else "first"
        return "largest" if falling else "smallest"

    def keys(self, context: Context) -> Callable[[int], Any]:
        """What rows are sorted by; None or nan where it is not known."""
        by = self.column.sorted_by
        return (figure(by) if by else self.figure).read.bind(context)

    def later_keys(self, context: Context) -> Callable[[int], Any] | None:
        """What rows without a key are sorted by, the largest first; None for the model's order."""
        by = self.column.then_by
        return figure(by).read.bind(context) if by else None

    def of_experts(self, found: ExpertsReady, format: str) -> Sequence[float]:
        """The figure of every expert; empty where not known, or without a meaning for experts."""
        experts = self.figure.experts
        return () if experts is None else experts.read(found, format)


def table_columns() -> tuple[TableColumn, ...]:
    """All columns, from the left."""
    return _made(column_figures())


def table_column(id: str) -> TableColumn:
    """The column of a figure.

    Raises:
        KeyError: there is none.
    """
    for each in table_columns():
        if each.id == id:
            return each
    raise KeyError(id)


@lru_cache(maxsize=2)
def _made(figures: tuple[Figure, ...]) -> tuple[TableColumn, ...]:
    found = []
    for each in figures:
        assert each.column is not None
        own = drawer(each)
        draw = own or plain_drawer(each)
        found.append(TableColumn(each.id, each, each.column, draw, plain=own is None))
    return tuple(found)


class ColumnLayout(NamedTuple):
    """Columns with the cells that each takes, the blank before it not counted."""

    width: int
    columns: tuple[tuple[TableColumn, int], ...]

    def plain_readers(self, context: Context) -> list[tuple[str, Reader]]:
        """Readers of the figures without a drawer of their own."""
        return [(each.id, each.figure.read.bind(context)) for each, _ in self.columns if each.plain]

    def at(self, x: int) -> TableColumn | None:
        """The column in whose cells ``x`` lies, the blank before it and the gutter included."""
        end = GUTTER - 1
        for column, width in self.columns:
            end += width + 1
            if x < end:
                return column
        return None


def block_digits(session: Session) -> int:
    """Digits of the last block's number."""
    return len(str(max(session.layers.blocks, default=0)))


def fit_columns(width: int, session: Session, digits: int, sorted_by: str = "kl") -> ColumnLayout:
    """Share a width out: names and formats are cut last, the bar takes what is left.

    The column sorted by is always there.
    """
    layers = session.layers
    # The longest name is looked for among a sample: all rows of all models would cost too much.
    sample = range(0, len(layers.names), max(1, len(layers.names) // 200))
    longest = {
        "layer": max(
            (len(short_name(layers.names[row], layers.blocks[row], digits)) for row in sample),
            default=20,
        ),
        "holds": longest_held(session),
    }
    widths = {
        "layer": min(max(longest["layer"], 12), 20),
        "holds": 11 if width < 110 else 15,
        "kl": KL,
    }
    left = width - GUTTER - sum(widths.values()) - len(widths)
    more = {id: max(0, min(longest[id], MOST_TEXT) - widths[id]) for id in longest}
    optional = [column for column in table_columns() if column.id not in widths]
    for column in sorted(optional, key=lambda column: (column.id != sorted_by, column.column.rank)):
        lesser = column.column.rank >= LESSER
        fair = max(FAIR_BAR, LEAST_BAR + sum(more.values())) if lesser else LEAST_BAR
        fair = 0 if column.id == sorted_by else fair
        if left - column.column.width - 1 < fair:
            break
        left -= column.column.width + 1
        widths[column.id] = column.column.width
    for id, wanted in more.items():
        given = max(0, min(wanted, left - LEAST_BAR))
        widths[id] += given
        left -= given
    widths["kl"] += 1 + max(0, min(left, MOST_BAR))
    return ColumnLayout(width, tuple((c, widths[c.id]) for c in table_columns() if c.id in widths))


def longest_held(session: Session) -> int:
    """Cells of the longest format that a layer holds, with the mark of a changed one."""
    layers = session.layers
    dtypes = set(layers.dtypes)
    pairs: set[tuple[str, str]]
    if len(dtypes) > 1:
        pairs = set(zip(layers.holds, layers.dtypes, strict=True))
    else:  # as in most checkpoints: an answer to every toggle, so without a pair for every layer
        pairs = {(held, dtype) for held in set(layers.holds) for dtype in dtypes}
    shown = {own_format(dtype) if held == kept_format(dtype) else held for held, dtype in pairs}
    return 1 + max(map(cell_len, shown), default=0)


def header(layout: ColumnLayout, style: TableStyle, sorted_by: str, falling: bool) -> str:
    """The titles; the one that rows are sorted by has a mark."""
    glyphs = style.glyphs
    sign = ("v" if falling else "^") if glyphs.ascii else ("▾" if falling else "▴")
    parts = []
    for column, width in layout.columns:
        mark = sign if column.id == sorted_by else ""
        title = heading(column.figure, style)
        if column.column.left:
            title += mark
            if column.id == "kl":
                room = width - len(title)
                title += next((tail for tail in kl_titles(style) if len(tail) <= room), "")
            parts.append(fit(title, width, glyphs) + " ")
        else:
            # Behind the title, in the blank between two columns.
            parts.append(fit(f"{title:>{width}}", width, glyphs) + (mark or " "))
    line = " " * GUTTER + "".join(parts)
    if len(line) > layout.width and (mark := line[-1]) != " ":
        title = line[:-1].rsplit(" ", 1)[-1]  # the last column has none: before its title
        line = f"{line[: -len(title) - 2]}{mark}{title}"
    return fit(line.rstrip(), layout.width, glyphs)
