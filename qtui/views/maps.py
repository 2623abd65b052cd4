"""A map of blocks and kinds: one figure of every layer as a shade, the largest darkest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rich.cells import cell_len

from engine.report.figures import Context
from engine.report.figures.declaration import Figure
from engine.report.figures.registry import figures
from engine.session import Session
from engine.session.artefact import OUTSIDE
from qtui.views.text import Glyphs, Words, fit, printable

STEPS = 5
"""Shades."""
RANGE = 100.0
"""A value of this share of the largest, or less, has the lightest shade at any rate."""
UNICODE_SHADES = "·░▒▓█"
ASCII_SHADES = ".:+*#"
WHOLE = "other"
"""Row of head and embedding."""
MAPPED = (
    "kl", "kl_per_mb", "error", "outliers", "kurtosis", "worst_column_sigma", "waste", "bits",
    "input_ratio", "input_by_median", "output_error", "channels_over_10", "channels_over_50",
)  # fmt: skip
"""Figures that are mapped, in order; those of which nothing is known are left out."""


@dataclass
class Map:
    """Values by block and kind."""

    figure: Figure
    kinds: list[str] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """-1 for head and embedding, first."""
    cells: dict[tuple[int, str], tuple[float, int]] = field(default_factory=dict)
    """By block and kind the largest value and its row."""
    largest: float = 0.0
    least: float = 0.0
    """The lightest shade: the smallest value above 0, or what is a hundredth of the largest."""

    def layer(self, at: tuple[int, int]) -> int | None:
        """The row of a cell, by its place; None where there is no layer."""
        y, x = at
        if not (0 <= y < len(self.blocks) and 0 <= x < len(self.kinds)):
            return None
        found = self.cells.get((self.blocks[y], self.kinds[x]))
        return None if found is None else found[1]

    def place(self, session: Session, row: int) -> tuple[int, int] | None:
        """Where the cell of a row is."""
        key = session.layers.blocks[row], session.layers.kinds[row]
        if key[0] not in self.blocks or key[1] not in self.kinds:
            return None
        return self.blocks.index(key[0]), self.kinds.index(key[1])

    def moved(self, at: tuple[int, int], down: int, right: int) -> tuple[int, int]:
        """Where a cursor is after a move: on a layer always, the nearest in the new line.

        Args:
            at: block and kind that it leaves, by their places.
            down: blocks to move by; it stops at an end.
            right: kinds to move by; places without a layer are not counted.
        """
        y = max(0, min(at[0] + down, len(self.blocks) - 1))
        there = [x for x, kind in enumerate(self.kinds) if (self.blocks[y], kind) in self.cells]
        x = min(there, key=lambda x: abs(x - at[1]))
        return y, there[max(0, min(there.index(x) + right, len(there) - 1))]

    def step(self, value: float) -> int:
        """Shade of a value, 0 to `STEPS` − 1, by its logarithm."""
        if not value > self.least or not self.largest > self.least > 0:
            return 0
        share = math.log(value / self.least) / math.log(self.largest / self.least)
        return max(0, min(STEPS - 1, math.ceil(share * (STEPS - 1) - 1e-9)))


def mapped_figures(context: Context) -> list[Figure]:
    """Figures of which something is known."""
    by_id = {figure.id: figure for figure in figures()}
    count = len(context.session.layers.names)
    found = []
    for id in MAPPED:
        figure = by_id.get(id)
        if figure is None:
            continue
        read = figure.read.bind(context)
        if any(_number(read(row)) is not None for row in range(count)):
            found.append(figure)
    return found


def map_of(context: Context, figure: Figure) -> Map:
    """The map of a figure: of several layers in a cell, such as experts, the largest counts."""
    layers = context.session.layers
    read = figure.read.bind(context)
    found = Map(figure)
    largest: dict[tuple[int, str], tuple[float, int]] = {}
    for row, (block, kind, role) in enumerate(
        zip(layers.blocks, layers.kinds, layers.roles, strict=True)
    ):
        key = (-1 if role in OUTSIDE else block), kind
        if (known := largest.get(key)) is None:
            known = largest[key] = -math.inf, row
        value = read(row)
        # Of thousands of rows in a cell few are larger than all before: only they are looked at.
        if isinstance(value, int | float) and value > known[0] and _number(value) is not None:
            largest[key] = float(value), row
    found.cells = {
        key: (math.nan if value == -math.inf else value, row)
        for key, (value, row) in largest.items()
    }
    found.kinds = list(dict.fromkeys(kind for _, kind in found.cells))
    found.blocks = sorted({block for block, _ in found.cells})
    values = [v for v, _ in found.cells.values() if v == v]
    found.largest = max(values, default=0.0)
    smallest = min((v for v in values if v > 0), default=0.0)
    found.least = max(smallest, found.largest / RANGE)
    return found


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def map_lines(
    found: Map, at: tuple[int, int] | None, top: int, width: int, height: int, glyphs: Glyphs
) -> list[Words]:
    """The map from a block on: a line of kinds, then a line a block.

    Args:
        found: the map.
        at: block and kind of the cursor, by their places; None where it is elsewhere.
        top: place of the first block that is drawn.
        width: cells there are.
        height: lines there are.
        glyphs: what to draw with.
    """
    label = 7
    each = max(2, min(12, (width - label) // max(1, len(found.kinds))))
    heads: Words = [(" block".ljust(label), "$dim")]
    for kind in found.kinds:
        heads.append((heading(kind, each - 1, glyphs) + " ", "$dim"))
    lines = [heads]
    for y in range(top, min(len(found.blocks), top + height - 1)):
        block = found.blocks[y]
        name = WHOLE if block < 0 else str(block)
        hidden = y == top > 0 or y == top + height - 2 < len(found.blocks) - 1
        words: Words = [(f"{name:>{label - 1}}{'+' if hidden else ' '}", "$dim")]
        for x, kind in enumerate(found.kinds):
            cell = found.cells.get((block, kind))
            if cell is None:
                words.append((" " * each, ""))
                continue
            value, _ = cell
            if value != value:
                drawn, tone = "?".center(each - 1), "$dim"
            else:
                step = found.step(value)
                drawn, tone = _shade(step, glyphs) * (each - 1), f"$heat-{step + 1}"
            if at != (y, x):
                words.append((drawn, tone))
            elif len(drawn) < 3:
                words.append((drawn, f"{tone} reverse"))
            else:  # a full block in reverse would look like a gap
                words += [("[", "bold"), (drawn[1:-1], tone), ("]", "bold")]
            words.append((" ", ""))
        lines.append(words)
    return lines


def _shade(step: int, glyphs: Glyphs) -> str:
    """What a step is drawn with: the lightest as a dot, since a blank would look like a gap."""
    return (ASCII_SHADES if glyphs.ascii else UNICODE_SHADES)[step]


def heading(kind: str, width: int, glyphs: Glyphs) -> str:
    """A kind in exactly so many cells: whole, else the part of its name that tells it apart.

    What is cut even so ends in an ellipsis.
    """
    name = printable(kind)
    if cell_len(name) > width:
        first, _, last = name.partition("_")
        name = last if first == "lm" else first  # lm_head; q_proj, embed_tokens
    return fit(name, width, glyphs)


def scale_line(found: Map, glyphs: Glyphs) -> Words:
    """What the shades stand for."""
    text = found.figure.quantity.text
    first, space, rest = found.figure.title.partition(" ")
    kilo = glyphs.kilo if found.figure.quantity.thousandths else ""
    words: Words = [(f"{first}{kilo}{space}{rest}: ", "$dim")]
    for step in range(STEPS):
        words.append((_shade(step, glyphs), f"$heat-{step + 1}"))
    most = text(found.largest) if found.largest else "0"
    words.append((f" {text(found.least)} to {most}, by logarithm", "$dim"))
    return words


def visible(at: int, top: int, count: int, room: int) -> int:
    """The first of ``count`` lines to draw so that ``at`` is among ``room``; ``top`` if it is."""
    if top <= at < top + room:
        return max(0, min(top, count - room))
    return max(0, min(at - room // 2, count - room))
