"""The words of one line of the layer table: a layer's, or one of its experts'."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.style import Style

from engine.protocol import Estimate, ExpertsReady, Sensitivity
from engine.report.figures import OUTLIER_COLUMN, below_floor, finding
from engine.report.numbers import percent, short
from qtui.views.text import Glyphs, fit, printable
from qtui.widgets.table.columns import GUTTER, Layout, Look, Piece, Row, dppl_half, signed_change
from qtui.widgets.table.listing import Listing

__all__ = [
    "OUTLIER_COLUMN", "ExpertRow", "Line", "change", "expert_row", "layer_row", "line_pieces",
]  # fmt: skip


class ExpertRow(NamedTuple):
    """All that the line of one expert is drawn from."""

    number: int
    """-1 while the experts are being read."""
    experts: ExpertsReady | None
    in_scope: bool
    why_not: str = ""
    """Why there is nothing to list."""


class Line(NamedTuple):
    """All that a line of the screen is drawn from: lines that are equal look the same."""

    content: Row | ExpertRow | str
    style: str
    """Of a text; rows have their own."""
    here: bool
    """Whether the cursor stands on it."""
    layout: Layout
    look: Look
    base: Style


def line_pieces(line: Line) -> list[Piece]:
    """A line as pieces of text with the names of their styles."""
    if isinstance(line.content, Row):
        return layer_cells(line.content, line.layout, line.look, line.here)
    if isinstance(line.content, ExpertRow):
        return expert_cells(line.content, line.layout, line.look, line.here)
    return [(fit(line.content, line.layout.width, line.look.glyphs), line.style)]


def layer_row(
    listing: Listing,
    row: int,
    effect: Sensitivity | Estimate | None,
    marked: Collection[str],
    pending: Mapping[str, str],
    in_scope: bool,
) -> Row:
    """What the line of a layer says."""
    session, layers = listing.session, listing.session.layers
    name = layers.names[row]
    dppl, half = dppl_half(session, effect)
    return Row(
        name=name,
        block=layers.blocks[row],
        holds=pending.get(name, layers.holds[row]),
        shape=layers.shapes[row],
        bits=layers.bits[row],
        changed=name in session.changed,
        pending=name in pending,
        marked=name in marked,
        in_scope=in_scope,
        fused=layers.roles[row] == "experts",
        open=name in listing.opened,
        measured=effect if isinstance(effect, Sensitivity) else None,
        estimate=effect if isinstance(effect, Estimate) else None,
        below_floor=below_floor(session, effect),
        dppl=dppl,
        dppl_half=half,
        weights=layers.weights[row],
    )


def expert_row(
    listing: Listing, row: int, number: int, why_not: Mapping[str, str], in_scope: bool
) -> ExpertRow:
    """What the line of an expert says."""
    name = listing.session.layers.names[row]
    why = why_not.get(name, "") if number < 0 else ""
    return ExpertRow(number, listing.session.experts.get(name), in_scope, why)


def change(effect: Sensitivity, glyphs: Glyphs) -> str:
    """``+ .088 ± .031``: the change of perplexity and half its interval."""
    return signed_change(effect.dppl, (effect.dppl_high - effect.dppl_low) / 2, glyphs)


def layer_cells(row: Row, layout: Layout, look: Look, here: bool) -> list[Piece]:
    """The line of a layer as pieces of text with the names of their styles."""
    glyphs = look.glyphs
    fold = ("v" if row.open else "}") if glyphs.ascii else ("▾" if row.open else "▸")
    parts = [
        (_edge(here, row.in_scope, glyphs), "mark"),
        (glyphs.marked if row.marked else " ", "mark"),
        (glyphs.finding if finding(row.weights) else " ", "finding"),
        (fold if row.fused else " ", "dim"),
    ]
    for column, width in layout.columns:
        drawn = column.draw(row, look, width)
        if column.id == "layer" and here:
            drawn = [(text, "strong") for text, _ in drawn]
        parts += drawn
        parts.append((" " * (1 + width - sum(cell_len(text) for text, _ in drawn)), ""))
    return _filled(parts[:-1], layout.width)


def _edge(here: bool, in_scope: bool, glyphs: Glyphs) -> str:
    if here:
        return glyphs.cursor
    return ("|" if glyphs.ascii else "▏") if in_scope else " "


def _filled(parts: list[Piece], width: int) -> list[Piece]:
    """The pieces in ``width`` cells, blanks at the end."""
    used = sum(cell_len(text) for text, _ in parts)
    return [*parts, (" " * (width - used), "")] if used < width else parts


def expert_cells(row: ExpertRow, layout: Layout, look: Look, here: bool) -> list[Piece]:
    """The line of an expert, under the columns of its layer where they have a meaning for it."""
    glyphs, experts = look.glyphs, row.experts
    edge = (_edge(here, row.in_scope, glyphs), "mark")
    indent = " " * (look.digits + 1)
    if experts is None or row.number < 0:
        words = printable(row.why_not) or f"reading{glyphs.ellipsis}"
        text = fit(f"{indent}{words}", layout.width - GUTTER, glyphs)
        return [edge, (" " * (GUTTER - 1), ""), (text, "finding" if row.why_not else "dim")]
    broken = _at(experts.nonfinite, row.number)
    bad = broken > 0
    parts = [edge, (" ", ""), (glyphs.finding if bad else " ", "finding"), (" ", "")]
    shown = {column.id for column, _ in layout.columns}
    said = [f"max |w| {_short(_at(experts.max_abs, row.number), glyphs)}"]
    if bad:
        said.insert(0, f"{broken:.0f} NaN or inf")
    figures = {
        "error": _at(experts.relative.get(look.format, ()), row.number),
        "outliers": _at(experts.outliers, row.number),
    }
    said += [f"{name} {_percent(x, glyphs)}" for name, x in figures.items() if name not in shown]
    # What is said in words takes the room of the effects, which experts have none of.
    wordy = sum(width + 1 for column, width in layout.columns if column.id in ("kl", "dppl")) - 1
    for column, width in layout.columns:
        if column.id == "dppl":
            continue
        if column.id == "layer":
            piece = (fit(f"{indent}expert {row.number}", width, glyphs), "strong" if here else "")
        elif column.id == "kl":
            piece = (fit("  " + "  ".join(said), wordy, glyphs), "finding" if bad else "dim")
        elif column.id in figures:
            piece = (f"{_percent(figures[column.id], glyphs):>{width}}", "" if here else "dim")
        else:
            piece = (" " * width, "")
        parts += [piece, (" ", "")]
    return _filled(parts[:-1], layout.width)


def _at(column: Sequence[float], number: int) -> float:
    return column[number] if number < len(column) else math.nan


def _percent(share: float, glyphs: Glyphs) -> str:
    return glyphs.unknown if math.isnan(share) else percent(share)


def _short(value: float, glyphs: Glyphs) -> str:
    return glyphs.unknown if math.isnan(value) else short(value)
