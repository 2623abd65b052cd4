"""Titles of the table's columns, where they change with what is shown."""

from __future__ import annotations

from collections.abc import Callable

from engine.report.figures import Figure
from engine.report.wording import short
from qtui.views.text import printable
from qtui.widgets.table.cells import TableStyle


def heading(figure: Figure, style: TableStyle) -> str:
    """The title of a figure's column."""
    if (own := HEADINGS.get(figure.id)) is not None:
        return own(style)
    return figure.column.heading if figure.column is not None else figure.id


def _layer(style: TableStyle) -> str:
    return " " * (style.digits + 1) + f"layer {style.shown}".strip()


def _kl(style: TableStyle) -> str:
    return f"KL{style.glyphs.kilo}"


def kl_titles(style: TableStyle) -> tuple[str, ...]:
    """What may stand behind the title of the KL, the longest first: whose it is, and which way.

    The line above the table says both, so that nothing may stand here where there is no room.
    """
    shown = printable(style.format)
    if not shown:
        return ("",)
    if style.direction == "degrade":
        return f" of {shown}", f" {shown}", ""
    return f" regained by keeping it from {shown}", " regained by keeping", " regained", ""


def _dnll(style: TableStyle) -> str:
    return f"{'d' if style.glyphs.ascii else 'Δ'}NLL{style.glyphs.kilo}"


HEADINGS: dict[str, Callable[[TableStyle], str]] = {
    "layer": _layer,
    "kl": _kl,
    "dppl": lambda style: " dPPL" if style.glyphs.ascii else " ΔPPL",
    "dnll": _dnll,
    "outliers": lambda style: f">{short(style.sigma, small=0)}{style.glyphs.sigma}",
}
"""Of figures whose title changes, by id."""
