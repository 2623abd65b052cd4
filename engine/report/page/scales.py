"""Axes of charts: where values lie, and which values are labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Values along one side of a chart, in pixels."""

    low: float
    high: float
    start: float
    """Pixel of ``low``."""
    end: float
    """Pixel of ``high``."""
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values outside lie at the ends."""
        low, high, here = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        share = 0.5 if high == low else (here - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 7) -> list[float]:
        """Round values within the axis, at most about so many."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10.0 ** math.floor(math.log10(span / most))
        while span / step > most:
            # 1, 2, 5, 10, 20 and so on.
            step *= 2.5 if f"{step:e}".startswith("2") else 2.0
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first
        return [(first + at) * step for at in range(count + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(found) <= most:
            break
    return found[:: max(1, math.ceil(len(found) / most))]


def spanning(
    values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.05
) -> Axis:
    """An axis for all finite values, with a margin; a logarithmic one for those above 0."""
    usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(usable), max(usable)
    if log:
        factor = max((high / low) ** margin, 1.1)
        return Axis(low / factor, high * factor, start, end, log=True)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Axis(low - room, high + room, start, end)
