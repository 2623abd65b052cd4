"""The cells of a layer's line: drawn by a figure's quantity, or by a drawer of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len

from engine import protocol as p
from engine.report.figures import Figure, Value
from engine.report.wording import percent, short
from qtui.views.text import BELOW, DOUBT, Glyphs, bar, fit, printable, short_name, signed_change

Piece: TypeAlias = tuple[str, str]
"""Text, and the name of its style; empty for that of the line."""

KL = 6
"""Width of the KL's figures, without its bar."""


class LayerRow(NamedTuple):
    """All that the line of a layer is drawn from."""

    name: str
    block: int
    holds: str
    shape: tuple[int, ...]
    bits: int
    changed: bool
    pending: bool
    marked: bool
    in_scope: bool
    """Whether it is in the scope of a toggle."""
    refused: bool | None
    """Whether the export target cannot hold it; None where nothing is to be said of it."""
    fused: bool
    open: bool
    """Whether its experts are listed below it."""
    measured: p.Sensitivity | None
    estimate: p.Estimate | None
    """Corrected where it can be."""
    below_floor: bool
    """Whether what was measured is less than the dtype's arithmetic can tell."""
    dppl: float
    """Change of perplexity, measured or estimated."""
    dppl_half: float
    """Half its interval."""
    weights: p.LayerWeights | None
    finding: bool
    """Whether triage found something in it."""
    values: dict[str, Value | None]
    """Of the figures without a drawer of their own, by id."""

    @property
    def effect(self) -> p.Sensitivity | p.Estimate | None:
        """What is shown of its effect."""
        return self.measured or self.estimate


class TableStyle(NamedTuple):
    """What all rows are drawn in."""

    glyphs: Glyphs
    format: str
    worst: float
    """The largest finite KL, the full width of a bar."""
    sigma: float
    digits: int
    """Of the number of the last block."""
    shown: str = ""
    """How many layers of all the filter shows; empty without one."""
    direction: p.Direction = "degrade"
    """Which effects are shown."""


Drawer: TypeAlias = Callable[[LayerRow, TableStyle, int], list[Piece]]
"""The cells of a row in so much width; what is shorter is filled up by the caller."""


def heat(kl: float, worst: float) -> int:
    """Step of the heat scale, 1 to 5, of an effect beside the largest."""
    share = kl / worst if worst > 0 else 0.0
    return 1 + sum(share >= step for step in (0.08, 0.2, 0.45, 0.75))


def drawer(figure: Figure) -> Drawer | None:
    """A figure's own drawer; None where its quantity says how it is drawn."""
    return DRAWERS.get(figure.id)


def plain_drawer(figure: Figure) -> Drawer:
    """Draws the text that a figure's quantity has; a dim sign where it is not known."""
    id, said, number = figure.id, figure.quantity.text, figure.quantity.number
    tone = "dim" if figure.column is not None and figure.column.quiet else ""

    def draw(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
        value = row.values.get(id)
        if value is None or value != value:
            return [(f"{style.glyphs.unknown:>{width}}", "dim")]
        if number:
            return [(f"{said(value):>{width}}", tone)]
        return [(fit(printable(said(value)), width, style.glyphs), tone)]

    return draw


def _right(text: str, width: int, style: str = "") -> list[Piece]:
    return [(f"{text:>{width}}", style)]


def _name(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    name = printable(short_name(row.name, row.block, style.digits))
    # A name that is too long keeps its block and its end.
    kept = style.digits + 1 if row.block >= 0 and cell_len(name) > width else 0
    name = name[:kept] + fit(name[kept:], width - kept, style.glyphs, end=False)
    return [(name, "strong" if row.marked else "")]


def _holds(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    glyphs = style.glyphs
    hand = glyphs.pending if row.pending else glyphs.changed if row.changed else " "
    tone = "held" if row.changed or row.pending else "dim"
    if row.refused is None:
        return [(fit(hand + printable(row.holds), width, glyphs), tone)]
    sign = glyphs.refused if row.refused else glyphs.unserved
    return [(sign, "finding"), (fit(printable(row.holds), width - 1, glyphs), tone)]


def _kl(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    glyphs, effect, room = style.glyphs, row.effect, width - KL - 1
    if effect is None:
        return [(f"{glyphs.unknown:>{KL}}", "dim")]
    if math.isnan(effect.kl):
        return _right("nan", KL, "finding")
    share = 0.0 if style.worst <= 0 else min(1.0, effect.kl / style.worst)
    share = 1.0 if effect.kl == math.inf else share
    tone = f"heat-{heat(share, 1.0)}"
    figure = short(1000 * effect.kl)
    if row.below_floor:
        said = BELOW if len(BELOW) <= room else BELOW[:room]
        return [(f"{figure:>{KL}} ", "dim"), (said, "dim")]
    if row.measured is not None:
        return [(f"{figure:>{KL}} ", tone), (bar(share, room, glyphs), tone)]
    cells = max(1, round(share * room)) if share > 0 and room > 0 else 0
    guess = ("-" if glyphs.ascii else "░") * cells
    doubt = (DOUBT, "finding") if isinstance(effect, p.Estimate) and effect.doubt else (" ", "")
    return [(f"{glyphs.about + figure:>{KL}}", tone), doubt, (guess, tone)]


def _dppl(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    if row.effect is None:
        return [(f"{style.glyphs.unknown:>5}", "dim")]
    if math.isnan(row.dppl):
        unknown = row.measured is None
        return [(f"{style.glyphs.unknown if unknown else 'nan':>5}", "dim" if unknown else "")]
    text = signed_change(row.dppl, row.dppl_half, style.glyphs, estimated=row.measured is None)
    sure = abs(row.dppl) > row.dppl_half or math.isinf(row.dppl)
    tone = "dim" if not sure else "better" if row.dppl < 0 else ""
    return [(fit(text, width, style.glyphs), tone)]


def _dnll(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    if row.effect is None or math.isnan(row.effect.dnll):
        return _right(style.glyphs.unknown, width, "dim")
    about = style.glyphs.about if row.measured is None else ""
    sign = "" if row.effect.dnll < 0 else "+"
    tone = "dim" if abs(row.effect.dnll) < 2 * row.effect.dnll_se else ""
    return _right(f"{about}{sign}{short(1000 * row.effect.dnll)}", width, tone)


def _error(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    if row.weights is None:
        return _right(style.glyphs.unknown, width, "dim")
    known = row.weights.errors.get(style.format)
    if known is not None:
        return _right(percent(known.relative), width)
    refused = style.format in row.weights.refused
    return _right("n/a" if refused else style.glyphs.unknown, width, "dim")


def _outliers(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    if row.weights is None:
        return _right(style.glyphs.unknown, width, "dim")
    tone = "finding" if row.finding else "dim"
    return _right(percent(row.weights.outliers.fraction), width, tone)


def _bits(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    weights = math.prod(row.shape)
    if not weights or row.pending:
        return _right(style.glyphs.unknown, width, "dim")
    return _right(short(row.bits / weights), width, "held" if row.changed else "dim")


def _shape(row: LayerRow, style: TableStyle, width: int) -> list[Piece]:
    return _right(fit(style.glyphs.times.join(map(str, row.shape)), width).strip(), width, "dim")


DRAWERS: dict[str, Drawer] = {
    "layer": _name,
    "holds": _holds,
    "kl": _kl,
    "dppl": _dppl,
    "dnll": _dnll,
    "error": _error,
    "outliers": _outliers,
    "bits": _bits,
    "shape": _shape,
}
"""Of figures that are drawn in a way of their own, by id."""
