"""A histogram drawn as SVG shapes, with its words as text."""

from __future__ import annotations

import math

from engine import protocol as p
from engine.report.wording import short
from qtui.saved.svg import CELL, SIZE, Palette, caption, folded, opening, written

WIDTH, HEIGHT = 760.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 20.0, 52.0, 78.0
MOST_GRID_LINES = 512
SMALL = SIZE * 0.78


def histogram_svg(found: p.HistogramReady, *, title: str, command: str, palette: Palette) -> str:
    """Counts by weight, upwards in powers of ten, with ±3σ and the values a format can take."""
    said = folded(command, int((WIDTH - 24) / (CELL * 0.78)))
    height = HEIGHT + len(said) * SMALL * 1.35
    parts = [opening(WIDTH, height, title, command, palette)]
    parts.append(_word(title, LEFT, 24, palette.foreground, weight="bold"))
    about = f"mean {short(found.mean, small=4)}   std {short(found.std, small=4)}"
    if found.format:
        values = f", {len(found.grid)} values" if found.grid else ""
        step = f", step {short(found.step, small=4)}" if math.isfinite(found.step) else ""
        about += f"   {found.format}" + (values + step or ": no fixed levels")
    parts.append(_word(about, LEFT, 42, palette.dim, size=SMALL))
    parts += _bars(found, palette)
    parts += _across(found, palette)
    parts += caption(said, 12.0, HEIGHT + 2, SMALL, palette)
    return "\n".join([*parts, "</svg>", ""])


def _bars(found: p.HistogramReady, palette: Palette) -> list[str]:
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    floor = TOP + high
    top = max(found.counts, default=0)
    # One weight has to be seen: the axis begins below it.
    decades = max(1.0, math.log10(max(top, 1)) * 1.04) + 0.3
    parts = []
    for power in range(int(decades) + 1):
        y = floor - high * (power + 0.3) / decades
        if y < TOP:
            break
        label = f"{10**power:,}" if power < 5 else f"1e{power}"
        parts.append(_rule(LEFT, y, LEFT + wide, y, palette.dim, 0.3))
        parts.append(_word(label, LEFT - 6, y + 4, palette.dim, anchor="end", size=SMALL))
    step = wide / max(len(found.counts), 1)
    for number, count in enumerate(found.counts):
        if count:
            tall = high * (math.log10(count) + 0.3) / decades
            parts.append(
                f'<rect x="{LEFT + number * step:.2f}" y="{floor - tall:.2f}" '
                f'width="{max(step - 0.4, 0.4):.2f}" height="{tall:.2f}" fill="{palette.accent}"/>'
            )
    parts.append(_rule(LEFT, floor, LEFT + wide, floor, palette.foreground, 1.0))
    return parts


def _across(found: p.HistogramReady, palette: Palette) -> list[str]:
    """What lies along the axis: its ends and its middle, ±3σ, the values of the grid."""
    wide, floor = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    span = found.high - found.low

    def place(value: float) -> float:
        return LEFT + wide * ((value - found.low) / span if span > 0 else 0.5)

    parts = []
    for value, anchor in (
        (found.low, "start"), (found.low + span / 2, "middle"), (found.high, "end"),
    ):  # fmt: skip
        word = short(value, small=4)
        parts.append(
            _word(word, place(value), floor + 34, palette.foreground, anchor=anchor, size=SMALL)
        )
    parts.append(
        _word("weight", LEFT + wide / 2, floor + 52, palette.dim, anchor="middle", size=SMALL)
    )
    for side, word in ((-3, "−3σ"), (3, "+3σ")):
        value = found.mean + side * found.std
        if math.isfinite(value) and found.low < value < found.high:
            x = place(value)
            parts.append(_rule(x, TOP, x, floor, palette.foreground, 0.8, dashes="4 4"))
            parts.append(_word(word, x + 3, TOP + 10, palette.foreground, size=SMALL))
    for value in found.grid[:MOST_GRID_LINES]:
        if found.low <= value <= found.high:
            x = place(value)
            parts.append(_rule(x, floor + 5, x, floor + 16, palette.foreground, 1.0))
    return parts


def _word(
    text: str,
    x: float,
    y: float,
    color: str,
    *,
    anchor: str = "start",
    size: float = SIZE,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" fill="{color}" text-anchor="{anchor}" '
        f'font-size="{size:.2f}" font-weight="{weight}" xml:space="preserve">{written(text)}</text>'
    )


def _rule(
    x1: float, y1: float, x2: float, y2: float, color: str, width: float, *, dashes: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="{color}" '
        f'stroke-width="{width}"{dashed}/>'
    )
