"""KL over size as text: one letter for each finished checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from engine.report.characters import printable
from engine.report.wording import short, size

COLUMNS, LINES = 60, 12


class Point(NamedTuple):
    """A finished checkpoint in the plot."""

    name: str
    bytes: int
    kl: float
    """Nats per token."""


def scatter(points: Sequence[Point]) -> str:
    """The plot with its axes and a legend; empty where fewer than two have a place.

    KL is on a logarithmic scale; one of exactly zero is on the lowest line.

    Args:
        points: at most 26 are drawn, the first ones.
    """
    shown = [each for each in points if math.isfinite(each.kl)][: len(ascii_uppercase)]
    positive = [each.kl for each in shown if each.kl > 0]
    if len(shown) < 2 or not positive:
        return ""
    least, most = math.log(min(positive)), math.log(max(positive))
    small, large = min(each.bytes for each in shown), max(each.bytes for each in shown)
    grid = [[" "] * COLUMNS for _ in range(LINES)]
    for letter, each in zip(ascii_uppercase, shown, strict=False):
        across = (each.bytes - small) / (large - small) if large > small else 0.5
        high = (math.log(each.kl) - least) / (most - least) if each.kl > 0 and most > least else 0.0
        place = grid[LINES - 1 - round(high * (LINES - 1))]
        at = round(across * (COLUMNS - 1))
        place[_free(place, at)] = letter
    ends = {0: short(1000 * max(positive)), LINES - 1: short(1000 * min(positive))}
    width = max(map(len, ends.values()))
    drawn = [f"{ends.get(y, ''):>{width}} │{''.join(line)}".rstrip() for y, line in enumerate(grid)]
    left, right = size(small), size(large)
    gap = max(1, COLUMNS - len(left) - len(right))
    axis = f"{'':>{width}} └{'─' * COLUMNS}\n{'':>{width}}  {left}{'':>{gap}}{right}"
    names = [
        f"  {letter} {printable(each.name)}"
        for letter, each in zip(ascii_uppercase, shown, strict=False)
    ]
    return "\n".join(["KL·10³ over size", *drawn, axis, *names])


def _free(line: list[str], at: int) -> int:
    """The nearest place of a line that no other has; its own where all are taken."""
    places = sorted(range(len(line)), key=lambda each: (abs(each - at), each))
    return next((each for each in places if line[each] == " "), at)
