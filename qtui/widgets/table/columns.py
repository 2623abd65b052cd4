"""The columns of the layer table as values: width, title, order and drawing of each.

`fit_columns` chooses those that a width has room for; the least needed are the first to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len

from engine import protocol as p
from engine.report.figures import FIGURES, delta_ppl, finding
from engine.report.numbers import decimals, percent, short
from engine.session import Session
from qtui.views.text import Glyphs, bar, fit, printable, short_name

Piece: TypeAlias = tuple[str, str]
"""Text, and the name of its style; empty for that of the line."""
Keys: TypeAlias = Callable[[Session, str, p.Direction], Callable[[int], float | str]]
"""Binds a session, a format and a direction to what rows are sorted by; nan where not known."""

GUTTER = 4
"""Cells before the name: cursor or in_scope, mark, finding, sign of a fused row."""
KL, LEAST_BAR, FAIR_BAR, MOST_BAR = 6, 6, 16, 48
"""Width of the KL's figures; of its bar at least, before lesser columns are drawn, and at most."""
DOUBT = "?"
"""Stands behind an estimate that may not hold."""
BELOW = "<floor"
"""Stands in place of the bar of what is too small to be measured."""
LESSER = 4
"""Columns of this rank or above give way to a fair bar."""


class Row(NamedTuple):
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

    @property
    def effect(self) -> p.Sensitivity | p.Estimate | None:
        """What is shown of its effect."""
        return self.measured or self.estimate


class Look(NamedTuple):
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


class Column(NamedTuple):
    """One column."""

    id: str
    says: str
    """Its title in words."""
    width: int
    rank: int
    """Of two columns the one with the higher rank goes first when there is no room."""
    title: Callable[[Look], str]
    draw: Callable[[Row, Look, int], list[Piece]]
    """The cells of a row in so much width; what is shorter is filled up by the caller."""
    keys: Keys
    falling: bool = True
    """Whether the largest come first unless asked otherwise."""
    left: bool = False
    """Whether its title stands at the left."""
    of_experts: Callable[[p.ExpertsReady, str], Sequence[float]] | None = None
    """The same figure of every expert, empty where not known; None where it has no meaning."""


class Layout(NamedTuple):
    """Columns with the cells that each takes, the blank before it not counted."""

    width: int
    columns: tuple[tuple[Column, int], ...]

    def at(self, x: int) -> Column | None:
        """The column in whose cells ``x`` lies, the blank before it and the gutter included."""
        end = GUTTER - 1
        for column, width in self.columns:
            end += width + 1
            if x < end:
                return column
        return None


def heat(kl: float, worst: float) -> int:
    """Step of the heat scale, 1 to 5, of an effect beside the largest."""
    share = kl / worst if worst > 0 else 0.0
    return 1 + sum(share >= step for step in (0.08, 0.2, 0.45, 0.75))


# --- cells ---------------------------------------------------------------------------------------


def _right(text: str, width: int, style: str = "") -> list[Piece]:
    return [(f"{text:>{width}}", style)]


def _name(row: Row, look: Look, width: int) -> list[Piece]:
    name = printable(short_name(row.name, row.block, look.digits))
    # A name that is too long keeps its block and its end.
    kept = look.digits + 1 if row.block >= 0 and cell_len(name) > width else 0
    name = name[:kept] + fit(name[kept:], width - kept, look.glyphs, end=False)
    return [(name, "strong" if row.marked else "")]


def _holds(row: Row, look: Look, width: int) -> list[Piece]:
    glyphs = look.glyphs
    hand = glyphs.pending if row.pending else glyphs.changed if row.changed else " "
    text = fit(hand + printable(row.holds), width, glyphs)
    return [(text, "held" if row.changed or row.pending else "dim")]


def _kl(row: Row, look: Look, width: int) -> list[Piece]:
    glyphs, effect, room = look.glyphs, row.effect, width - KL - 1
    if effect is None:
        return [(f"{glyphs.unknown:>{KL}}", "dim")]
    if math.isnan(effect.kl):
        return _right("nan", KL, "finding")
    share = 0.0 if look.worst <= 0 else min(1.0, effect.kl / look.worst)
    share = 1.0 if effect.kl == math.inf else share
    style = f"heat-{heat(share, 1.0)}"
    figure = short(1000 * effect.kl)
    if row.below_floor:
        said = BELOW if len(BELOW) <= room else BELOW[:room]
        return [(f"{figure:>{KL}} ", "dim"), (said, "dim")]
    if row.measured is not None:
        return [(f"{figure:>{KL}} ", style), (bar(share, room, glyphs), style)]
    cells = max(1, round(share * room)) if share > 0 and room > 0 else 0
    guess = ("-" if glyphs.ascii else "░") * cells
    doubt = (DOUBT, "finding") if isinstance(effect, p.Estimate) and effect.doubt else (" ", "")
    return [(f"{glyphs.about + figure:>{KL}}", style), doubt, (guess, style)]


def _dppl(row: Row, look: Look, width: int) -> list[Piece]:
    if row.effect is None:
        return [(f"{look.glyphs.unknown:>5}", "dim")]
    if math.isnan(row.dppl):
        unknown = row.measured is None
        return [(f"{look.glyphs.unknown if unknown else 'nan':>5}", "dim" if unknown else "")]
    text = signed_change(row.dppl, row.dppl_half, look.glyphs, estimated=row.measured is None)
    sure = abs(row.dppl) > row.dppl_half or math.isinf(row.dppl)
    style = "dim" if not sure else "better" if row.dppl < 0 else ""
    return [(fit(text, width, look.glyphs), style)]


def _dnll(row: Row, look: Look, width: int) -> list[Piece]:
    if row.effect is None or math.isnan(row.effect.dnll):
        return _right(look.glyphs.unknown, width, "dim")
    about = look.glyphs.about if row.measured is None else ""
    sign = "" if row.effect.dnll < 0 else "+"
    style = "dim" if abs(row.effect.dnll) < 2 * row.effect.dnll_se else ""
    return _right(f"{about}{sign}{short(1000 * row.effect.dnll)}", width, style)


def _error(row: Row, look: Look, width: int) -> list[Piece]:
    if row.weights is None:
        return _right(look.glyphs.unknown, width, "dim")
    known = row.weights.errors.get(look.format)
    if known is not None:
        return _right(percent(known.relative), width)
    refused = look.format in row.weights.refused
    return _right("n/a" if refused else look.glyphs.unknown, width, "dim")


def _outliers(row: Row, look: Look, width: int) -> list[Piece]:
    if row.weights is None:
        return _right(look.glyphs.unknown, width, "dim")
    style = "finding" if finding(row.weights) else "dim"
    return _right(percent(row.weights.outliers.fraction), width, style)


def _bits(row: Row, look: Look, width: int) -> list[Piece]:
    weights = math.prod(row.shape)
    if not weights or row.pending:
        return _right(look.glyphs.unknown, width, "dim")
    return _right(short(row.bits / weights), width, "held" if row.changed else "dim")


def _top1(row: Row, look: Look, width: int) -> list[Piece]:
    if row.measured is None or math.isnan(row.measured.top1):
        return _right(look.glyphs.unknown, width, "dim")
    return _right(percent(row.measured.top1), width)


def _kurtosis(row: Row, look: Look, width: int) -> list[Piece]:
    if row.weights is None or math.isnan(row.weights.kurtosis):
        return _right(look.glyphs.unknown, width, "dim")
    return _right(short(row.weights.kurtosis), width, "dim")


def _shape(row: Row, look: Look, width: int) -> list[Piece]:
    return _right(fit(look.glyphs.times.join(map(str, row.shape)), width).strip(), width, "dim")


def _layer_title(look: Look) -> str:
    return " " * (look.digits + 1) + f"layer {look.shown}".strip()


def _kl_title(look: Look) -> str:
    return f"KL{look.glyphs.kilo}"


def kl_titles(look: Look) -> tuple[str, ...]:
    """What may stand behind the title of the KL, the longest first: whose it is, and which way.

    The line above the table says both, so that nothing may stand here where there is no room.
    """
    shown = printable(look.format)
    if not shown:
        return ("",)
    if look.direction == "degrade":
        return f" of {shown}", f" {shown}", ""
    return f" won back by keeping it from {shown}", " won back by keeping", " won back", ""


def _dnll_title(look: Look) -> str:
    return f"{'d' if look.glyphs.ascii else 'Δ'}NLL{look.glyphs.kilo}"


COLUMNS: tuple[Column, ...] = (
    Column(
        "layer", "the model's own order", 20, 0, _layer_title,
        _name, lambda session, format, direction: lambda row: row, falling=False, left=True,
    ),
    Column(
        "holds", "format held", 11, 0, lambda look: " holds", _holds,
        lambda session, format, direction: session.layers.holds.__getitem__,
        falling=False, left=True,
    ),
    Column("kl", "KL", KL, 0, _kl_title, _kl, FIGURES["kl"].bind, left=True),
    Column(
        "dppl", "change of perplexity", 13, 1,
        lambda look: " dPPL" if look.glyphs.ascii else " ΔPPL", _dppl, FIGURES["dppl"].bind,
        left=True,
    ),
    Column(
        "error", "weight error", 6, 2, lambda look: "error", _error, FIGURES["error"].bind,
        of_experts=lambda experts, format: experts.relative.get(format, ()),
    ),
    Column(
        "outliers", "share of outliers", 6, 3,
        lambda look: f">{short(look.sigma, small=0)}{look.glyphs.sigma}", _outliers,
        FIGURES["outliers"].bind, of_experts=lambda experts, format: experts.outliers,
    ),
    Column("bits", "bits per weight", 5, 4, lambda look: "bits", _bits, FIGURES["bits"].bind),
    Column(
        "top1", "agreement of first choices", 6, 5, lambda look: "top-1", _top1,
        FIGURES["top1"].bind, falling=False,
    ),
    Column(
        "kurtosis", "kurtosis", 5, 6, lambda look: "kurt", _kurtosis, FIGURES["kurtosis"].bind
    ),
    Column("dnll", "change of NLL", 9, 7, _dnll_title, _dnll, FIGURES["dnll"].bind),
    Column(
        "shape", "number of weights", 13, 8, lambda look: "shape", _shape, FIGURES["params"].bind
    ),
)  # fmt: skip
BY_ID: dict[str, Column] = {column.id: column for column in COLUMNS}


# --- layout --------------------------------------------------------------------------------------


def block_digits(session: Session) -> int:
    """Digits of the last block's number."""
    return len(str(max(session.layers.blocks, default=0)))


def fit_columns(width: int, session: Session, digits: int, sorted_by: str = "kl") -> Layout:
    """Share a width out: the bar takes what is left; the column sorted by is always there."""
    layers = session.layers
    # The longest name is looked for among a sample: all rows of all models would cost too much.
    sample = range(0, len(layers.names), max(1, len(layers.names) // 200))
    longest = max(
        (len(short_name(layers.names[row], layers.blocks[row], digits)) for row in sample),
        default=20,
    )
    widths = {
        "layer": min(max(longest, 12), 20 if width < 100 else 34),
        "holds": 11 if width < 110 else 15,
        "kl": KL,
    }
    left = width - GUTTER - sum(widths.values()) - len(widths)
    optional = [column for column in COLUMNS if column.id not in widths]
    for column in sorted(optional, key=lambda column: (column.id != sorted_by, column.rank)):
        fair = FAIR_BAR if column.rank >= LESSER else LEAST_BAR
        fair = 0 if column.id == sorted_by else fair
        if left - column.width - 1 < fair:
            break
        left -= column.width + 1
        widths[column.id] = column.width
    widths["kl"] += 1 + max(0, min(left, MOST_BAR))
    return Layout(width, tuple((c, widths[c.id]) for c in COLUMNS if c.id in widths))


def header(layout: Layout, look: Look, sorted_by: str, falling: bool) -> str:
    """The titles; the one that rows are sorted by has a mark."""
    glyphs = look.glyphs
    sign = ("v" if falling else "^") if glyphs.ascii else ("▾" if falling else "▴")
    parts = []
    for column, width in layout.columns:
        mark = sign if column.id == sorted_by else ""
        title = column.title(look)
        title = title + mark if column.left else mark + title
        if column.id == "kl":
            title += next((tail for tail in kl_titles(look) if len(title + tail) <= width), "")
        parts.append(fit(title if column.left else f"{title:>{width}}", width, glyphs))
    return fit(" " * GUTTER + " ".join(parts), layout.width, glyphs)


def dppl_half(session: Session, effect: p.Sensitivity | p.Estimate | None) -> tuple[float, float]:
    """A change of perplexity, and half its 95% interval; nan where not known."""
    change = delta_ppl(session, effect)
    if isinstance(effect, p.Sensitivity):
        half = (effect.dppl_high - effect.dppl_low) / 2
    elif effect is None or session.baseline is None:
        return change, math.nan
    else:
        # The interval of exp(ΔNLL), to first order.
        half = session.interval_factor * effect.dnll_se * (session.baseline.ppl + change)
    # One nan for all: a new one would be unequal to the one that was drawn.
    return change, math.nan if math.isnan(half) else half


def signed_change(dppl: float, half: float, glyphs: Glyphs, *, estimated: bool = False) -> str:
    """``+ .088 ± .031``, or ``≈+.088 ± .031``: a change of perplexity and half its interval."""
    if not math.isfinite(dppl):
        return short(dppl)
    sign = "-" if dppl < 0 else "+"
    spread = half if math.isfinite(half) else 0.0
    fine = max(abs(dppl), spread) < 0.9995
    value = decimals(abs(dppl), 3) if fine else short(abs(dppl))
    shown = f"{glyphs.about}{sign}{value}".rjust(6) if estimated else f"{sign}{value:>5}"
    if not math.isfinite(half):
        return shown
    error = decimals(half, 3) if fine else short(half)
    return f"{shown} {glyphs.plus_minus}{error if glyphs.ascii else ' ' + error}"
