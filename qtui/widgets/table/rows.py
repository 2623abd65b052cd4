"""One line of the layer table: a layer or one of its experts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.style import Style

from engine.diagnosis.thresholds import thresholds
from engine.protocol import Estimate, ExpertsReady, Sensitivity
from engine.report.figures import Figure, Reader
from engine.report.figures.effects import below_floor, delta_ppl_margin, finding
from engine.report.wording import short
from qtui.views.text import Glyphs, fit, printable
from qtui.widgets.table.cells import LayerRow, Piece, TableStyle
from qtui.widgets.table.columns import GUTTER, ColumnLayout, table_columns
from qtui.widgets.table.listing import Listing


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

    content: LayerRow | ExpertRow | str
    style: str
    """Of a text; rows have their own."""
    here: bool
    """Whether the cursor stands on it."""
    layout: ColumnLayout
    table: TableStyle
    base: Style


def line_pieces(line: Line) -> list[Piece]:
    """A line as pieces of text with the names of their styles."""
    if isinstance(line.content, LayerRow):
        return layer_cells(line.content, line.layout, line.table, line.here)
    if isinstance(line.content, ExpertRow):
        return expert_cells(line.content, line.layout, line.table, line.here)
    return [(fit(line.content, line.layout.width, line.table.glyphs), line.style)]


def layer_row(
    listing: Listing,
    row: int,
    effect: Sensitivity | Estimate | None,
    marked: Collection[str],
    pending: Mapping[str, str],
    in_scope: bool,
    refused: bool | None,
    readers: Sequence[tuple[str, Reader]],
) -> LayerRow:
    """What the line of a layer says."""
    session, layers = listing.session, listing.session.layers
    name = layers.names[row]
    dppl, half = delta_ppl_margin(session, effect)
    return LayerRow(
        name=name,
        block=layers.blocks[row],
        holds=pending.get(name, session.shown(row)),
        shape=layers.shapes[row],
        bits=layers.bits[row],
        changed=name in session.changed,
        pending=name in pending,
        marked=name in marked,
        in_scope=in_scope,
        refused=refused,
        fused=layers.roles[row] == "experts",
        open=name in listing.opened,
        measured=effect if isinstance(effect, Sensitivity) else None,
        estimate=effect if isinstance(effect, Estimate) else None,
        below_floor=below_floor(session, effect),
        dppl=dppl,
        dppl_half=half,
        weights=layers.weights[row],
        finding=finding(layers.weights[row], thresholds(session)),
        values={id: read(row) for id, read in readers},
    )


def expert_row(
    listing: Listing, row: int, number: int, why_not: Mapping[str, str], in_scope: bool
) -> ExpertRow:
    """What the line of an expert says."""
    name = listing.session.layers.names[row]
    why = why_not.get(name, "") if number < 0 else ""
    return ExpertRow(number, listing.session.experts.get(name), in_scope, why)


def layer_cells(row: LayerRow, layout: ColumnLayout, style: TableStyle, here: bool) -> list[Piece]:
    """The line of a layer as pieces of text with the names of their styles."""
    glyphs = style.glyphs
    fold = ("v" if row.open else "}") if glyphs.ascii else ("▾" if row.open else "▸")
    parts = [
        (_edge(here, row.in_scope, glyphs), "mark"),
        (glyphs.marked if row.marked else " ", "mark"),
        (glyphs.finding if row.finding else " ", "finding"),
        (fold if row.fused else " ", "dim"),
    ]
    for column, width in layout.columns:
        drawn = column.draw(row, style, width)
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


def expert_cells(
    row: ExpertRow, layout: ColumnLayout, style: TableStyle, here: bool
) -> list[Piece]:
    """The line of an expert, under the columns of its layer where they have a meaning for it."""
    glyphs, experts = style.glyphs, row.experts
    edge = (_edge(here, row.in_scope, glyphs), "mark")
    indent = " " * (style.digits + 1)
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
        column.id: _text(
            column.figure, _at(column.of_experts(experts, style.format), row.number), glyphs
        )
        for column in table_columns()
        if column.figure.experts is not None
    }
    said += [f"{name} {text}" for name, text in figures.items() if name not in shown]
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
            piece = (f"{figures[column.id]:>{width}}", "" if here else "dim")
        else:
            piece = (" " * width, "")
        parts += [piece, (" ", "")]
    return _filled(parts[:-1], layout.width)


def _at(column: Sequence[float], number: int) -> float:
    return column[number] if number < len(column) else math.nan


def _text(figure: Figure, value: float, glyphs: Glyphs) -> str:
    return glyphs.unknown if math.isnan(value) else figure.quantity.text(value)


def _short(value: float, glyphs: Glyphs) -> str:
    return glyphs.unknown if math.isnan(value) else short(value)
