"""A gallery: small histograms of all layers of one kind, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from engine.session import Session
from engine.session.artefact import OUTSIDE
from qtui.views.text import Glyphs, Words, fit, printable, short_name, sparkline

LEAST, MOST = 12, 28
"""Cells of a histogram."""
PER_LINE = 8
"""Histograms in a line, at most."""


@dataclass(frozen=True)
class Gallery:
    """Layers of one kind, in the model's order."""

    kind: str
    rows: tuple[int, ...]
    names: tuple[str, ...]
    """What stands before each histogram: its block, and its expert if it is one."""


@dataclass(frozen=True)
class Tiling:
    """Where histograms are, at some width."""

    across: int
    """In a line."""
    label: int
    """Cells before each."""
    cells: int
    """Of each."""


def gallery_of(session: Session, kind: str) -> Gallery:
    """The gallery of a kind."""
    layers = session.layers
    rows = tuple(row for row, each in enumerate(layers.kinds) if each == kind)
    return Gallery(kind, rows, tuple(_label(session, row) for row in rows))


def _label(session: Session, row: int) -> str:
    layers = session.layers
    name, block = layers.names[row], layers.blocks[row]
    if layers.roles[row] in OUTSIDE or block < 0:
        return printable(layers.kinds[row])
    _, experts, rest = name.partition(".experts.")
    expert = rest.partition(".")[0]
    return f"{block}/{expert}" if experts and expert.isdecimal() else str(block)


def tiling(gallery: Gallery, width: int) -> Tiling:
    """As many histograms in a line as have room: few wide ones rather than many narrow."""
    label = min(12, max(map(len, gallery.names), default=1)) + 1
    each = label + LEAST + 1
    across = max(1, min(PER_LINE, width // each, max(1, len(gallery.rows))))
    return Tiling(across, label, max(1, min(MOST, width // across - label - 1)))


def shown(gallery: Gallery, tiles: Tiling, top: int, lines: int) -> Sequence[int]:
    """Places of the histograms that are visible, from a line on."""
    return range(top * tiles.across, min(len(gallery.rows), (top + lines) * tiles.across))


def gallery_lines(
    gallery: Gallery,
    tiles: Tiling,
    counts: Mapping[int, list[int]],
    at: int | None,
    top: int,
    lines: int,
    glyphs: Glyphs,
) -> list[Words]:
    """The visible histograms, line by line.

    Args:
        gallery: what is shown.
        tiles: how.
        counts: of each row whose histogram is known.
        at: place of the cursor; None where it is elsewhere.
        top: first line.
        lines: how many there are.
        glyphs: what to draw with.
    """
    found: list[Words] = []
    for place in shown(gallery, tiles, top, lines):
        if place % tiles.across == 0:
            found.append([])
        known = counts.get(gallery.rows[place])
        drawn = glyphs.ellipsis if known is None else sparkline(known, tiles.cells, glyphs)
        here = place == at
        label = fit(gallery.names[place], tiles.label - 1, glyphs)
        found[-1] += [
            (f"{label:>{tiles.label - 1}}", "bold reverse" if here else "$dim"),
            (glyphs.cursor if here else " ", "$primary"),
            (drawn.ljust(tiles.cells), "$dim" if known is None else "$primary"),
            (" ", ""),
        ]
    return found


def about(gallery: Gallery, place: int, session: Session, known: int, width: int) -> Words:
    """The layer under the cursor, and what the pictures are, as much as there is room for."""
    layers = session.layers
    row = gallery.rows[place]
    name = printable(short_name(layers.names[row], layers.blocks[row], 2)).strip()
    weights = layers.weights[row]
    said = "" if weights is None else f"std {weights.std:.3g}, max {weights.outliers.max_abs:.3g}  "
    many = f", {known} of {len(gallery.rows)} read" if known < len(gallery.rows) else ""
    head, drawn = f"{name}: {said} ", f"min to max, log counts{many}"
    words = (f"all {printable(gallery.kind)}, {drawn}", drawn, many.removeprefix(", "), "")
    room = width - cell_len(head)
    return [
        (head, "bold"),
        (next(each for each in words if cell_len(each) <= max(0, room)), "$dim"),
    ]
