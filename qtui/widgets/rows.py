"""What a row of the layer table says: its columns, their widths, and their words."""

from __future__ import annotations

import math
from typing import NamedTuple

from engine.protocol import LayerWeights, Sensitivity
from engine.session import Session
from qtui.text import Glyphs, bar, decimals, fit, percent, printable, short, short_name

OUTLIER_COLUMN = 10.0
"""An input channel whose largest weight is so many σ is a finding."""

HOLDS, KL, DPPL, ERROR, OUTLIERS = 11, 6, 13, 6, 6


class Row(NamedTuple):
    """All that one line is drawn from."""

    name: str
    block: int
    holds: str
    changed: bool
    pending: bool
    marked: bool
    effect: Sensitivity | None
    weights: LayerWeights | None


class Columns(NamedTuple):
    """Widths in cells; 0 for a column there is no room for."""

    width: int
    name: int
    bar: int
    dppl: int
    error: int
    outliers: int
    digits: int
    format: str
    sigma: float


def fit_columns(width: int, session: Session, format: str, glyphs: Glyphs) -> Columns:
    """Share a width out: the bar takes what is left, the columns to the right give way first."""
    layers = session.layers
    digits = len(str(max(layers.blocks, default=0)))
    # The longest name is looked for among a sample: all rows of all models would cost too much.
    sample = range(0, len(layers.names), max(1, len(layers.names) // 200))
    longest = max(
        (len(short_name(layers.names[row], layers.blocks[row], digits)) for row in sample),
        default=20,
    )
    name = min(max(longest, 12), 20 if width < 100 else 34)
    left = width - 3 - name - 1 - HOLDS - KL - 1
    shown = []
    for needed in (DPPL, ERROR, OUTLIERS):
        room = left - needed - 1 >= 8 and 0 not in shown
        left -= needed + 1 if room else 0
        shown.append(needed if room else 0)
    return Columns(
        width=width,
        name=name,
        bar=max(0, min(left, 48)),
        dppl=shown[0],
        error=shown[1],
        outliers=shown[2],
        digits=digits,
        format=printable(format),
        sigma=session.settings.sigma,
    )


def header(columns: Columns, ordering: str, glyphs: Glyphs) -> str:
    """The titles; the one that rows are sorted by has a mark."""
    sorted_by = "v" if glyphs.ascii else "▾"
    kl = f"KL{glyphs.kilo}" + (sorted_by if ordering == "effect" else "")
    error = ("" if ordering != "weights" else sorted_by) + "error"
    title = f"{kl} of {columns.format}"
    if len(title) > KL + columns.bar:
        title = f"{kl} {columns.format}"
    parts = [
        "   ",
        fit(" " * (columns.digits + 1) + "layer", columns.name + 1, glyphs),
        fit(" holds", HOLDS, glyphs),
        fit(" " + title, KL + 1 + columns.bar, glyphs),
    ]
    if columns.dppl:
        parts.append(fit("  dPPL" if glyphs.ascii else "  ΔPPL", columns.dppl + 1, glyphs))
    if columns.error:
        parts.append(f" {error:>{columns.error}}")
    if columns.outliers:
        parts.append(f" {'>' + short(columns.sigma, small=0) + glyphs.sigma:>{columns.outliers}}")
    return fit("".join(parts), columns.width, glyphs)


def finding(weights: LayerWeights | None) -> bool:
    """Whether triage found something in a layer that a person should look at."""
    return weights is not None and (
        weights.nan > 0 or weights.inf > 0 or weights.worst_column_sigma > OUTLIER_COLUMN
    )


def heat(kl: float, worst: float) -> int:
    """Step of the heat scale, 1 to 5, of an effect beside the largest."""
    share = kl / worst if worst > 0 else 0.0
    return 1 + sum(share >= step for step in (0.08, 0.2, 0.45, 0.75))


def cells(
    row: Row, columns: Columns, worst: float, here: bool, glyphs: Glyphs
) -> list[tuple[str, str]]:
    """A line as pieces of text with the names of their styles."""
    found = finding(row.weights)
    gutter = glyphs.cursor if here else glyphs.marked if row.marked else " "
    hand = glyphs.pending if row.pending else glyphs.changed if row.changed else " "
    name = printable(short_name(row.name, row.block, columns.digits))
    parts = [
        (gutter, "mark"),
        (
            (glyphs.finding if found else glyphs.marked if here and row.marked else " ") + " ",
            "finding",
        ),
        (fit(name, columns.name, glyphs, end=False) + " ", "strong" if here or row.marked else ""),
        (
            fit(hand + printable(row.holds), HOLDS, glyphs),
            "held" if row.changed or row.pending else "dim",
        ),
    ]
    parts += _effect(row.effect, columns, worst, glyphs)
    unknown = glyphs.unknown
    if columns.error:
        known = row.weights.errors.get(columns.format) if row.weights is not None else None
        refused = row.weights is not None and columns.format in row.weights.refused
        text = percent(known.relative) if known is not None else "n/a" if refused else unknown
        parts.append((f" {text:>{columns.error}}", "" if known is not None else "dim"))
    if columns.outliers:
        text = percent(row.weights.outliers.fraction) if row.weights is not None else unknown
        parts.append((f" {text:>{columns.outliers}}", "finding" if found else "dim"))
    used = sum(len(text) for text, _ in parts[4:]) + 3 + columns.name + 1 + HOLDS
    parts.append((" " * max(0, columns.width - used), ""))
    return parts


def _effect(
    effect: Sensitivity | None, columns: Columns, worst: float, glyphs: Glyphs
) -> list[tuple[str, str]]:
    rest = 1 + columns.bar
    if effect is None:
        parts = [(f"{glyphs.unknown:>{KL}}" + " " * rest, "dim")]
        if columns.dppl:
            parts.append((f" {glyphs.unknown:>5}".ljust(columns.dppl + 1), "dim"))
        return parts
    step = f"heat-{heat(effect.kl, worst)}"
    share = effect.kl / worst if worst > 0 else 0.0
    parts = [
        (f"{short(1000 * effect.kl):>{KL}}", step),
        (" " + bar(share, columns.bar, glyphs), step),
    ]
    if columns.dppl:
        parts.append((" " + fit(change(effect, glyphs), columns.dppl, glyphs), _verdict(effect)))
    return parts


def change(effect: Sensitivity, glyphs: Glyphs) -> str:
    """``+ .088 ± .031``: the change of perplexity and half its interval."""
    half = (effect.dppl_high - effect.dppl_low) / 2
    if not math.isfinite(effect.dppl):
        return short(effect.dppl)
    sign = "-" if effect.dppl < 0 else "+"
    if max(abs(effect.dppl), half) < 0.9995:
        value, error = f"{decimals(abs(effect.dppl), 3):>5}", decimals(half, 3)
    else:
        value, error = f"{short(abs(effect.dppl)):>5}", short(half)
    return f"{sign}{value} {glyphs.plus_minus}{error if glyphs.ascii else ' ' + error}"


def _verdict(effect: Sensitivity) -> str:
    if effect.dppl_low > 0:
        return ""
    return "better" if effect.dppl_high < 0 else "dim"
