"""Rows of the check: a figure of the device beside what it must be, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure. A row that expects nothing is a measurement, told for its own sake."""

    step: str
    what: str
    found: float
    expected: float | None = None
    within: float = 0.0
    """Largest relative difference."""
    floor: float = 0.0
    """Absolute difference that rounding alone may cause, in addition."""
    most: bool = False
    """``expected`` is an upper limit."""
    unit: str = ""
    note: str = ""

    @property
    def checked(self) -> bool:
        """Whether it can fail."""
        return self.expected is not None

    @property
    def ok(self) -> bool:
        """Whether the figure is what it must be; never if it is not a number."""
        if self.expected is None:
            return True
        if math.isnan(self.found) or math.isnan(self.expected):
            return False
        if self.most:
            return self.found <= self.expected
        if self.found == self.expected:
            return True
        allowed = self.within * abs(self.expected) + self.floor
        return abs(self.found - self.expected) <= allowed

    @property
    def bound(self) -> str:
        """What was demanded, in words."""
        if self.expected is None:
            return ""
        if self.most:
            return f"≤ {number(self.expected)}"
        if not self.within and not self.floor:
            return f"= {number(self.expected)}, every bit"
        parts = [f"{self.within:.2%}"] if self.within else []
        parts += [number(self.floor)] if self.floor else []
        return f"= {number(self.expected)} ± {' ± '.join(parts)}"

    @property
    def line(self) -> str:
        """As it is printed when it is found."""
        mark = "    " if not self.checked else "ok  " if self.ok else "FAIL"
        said = f"{mark} {self.step}: {self.what}: {number(self.found)}"
        said += f" {self.unit}" if self.unit else ""
        said += f"  {self.bound}" if self.bound else ""
        return said + (f"  ({self.note})" if self.note else "")


class Recorder:
    """Takes the figures of one step, and passes each on at once."""

    def __init__(self, step: str, take: Callable[[Row], None]) -> None:
        self.step, self._take = step, take

    def same(
        self,
        what: str,
        found: float,
        expected: float,
        within: float = 0.0,
        floor: float = 0.0,
        **more: str,
    ) -> None:
        """A figure that must equal another one."""
        self._take(Row(self.step, what, found, expected, within, floor, **more))  # type: ignore[arg-type]

    def most(self, what: str, found: float, limit: float, **more: str) -> None:
        """A figure that must not exceed a limit."""
        self._take(Row(self.step, what, found, limit, most=True, **more))  # type: ignore[arg-type]

    def tell(self, what: str, found: float, unit: str = "", note: str = "") -> None:
        """A measurement, without a demand."""
        self._take(Row(self.step, what, found, unit=unit, note=note))

    def worst(
        self,
        what: str,
        found: Mapping[str, float],
        expected: Mapping[str, float],
        within: float = 0.0,
        floor: float = 0.0,
        slack: Mapping[str, float] | None = None,
    ) -> None:
        """Figures by name that must equal others: the row shows the one that differs most.

        ``slack`` takes the place of ``floor`` for those it names, where it is more.
        """
        more = slack or {}
        if set(found) != set(expected) or not found:
            lost = sorted(set(found) ^ set(expected))
            note = f"only one side has {', '.join(lost[:3])}" if lost else "there are none"
            self.same(what, math.nan, math.nan, note=note)
            return

        def beyond(name: str) -> float:
            difference = abs(found[name] - expected[name])
            excess = difference - within * abs(expected[name]) - max(floor, more.get(name, 0.0))
            return math.inf if math.isnan(excess) else excess

        name = max(found, key=lambda each: (beyond(each), abs(expected[each])))
        note = f"{len(found)} figures; furthest {name}"
        allowed = max(floor, more.get(name, 0.0))
        self.same(what, found[name], expected[name], within, allowed, note=note)


def number(value: float) -> str:
    """With up to six digits."""
    if value == int(value) if math.isfinite(value) else False:
        return f"{int(value):,}"
    return f"{value:.6g}"


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown, one table a step."""
    by_step: dict[str, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    parts = []
    for step, own in by_step.items():
        lines = [f"### {step}", "", "| what | found | demanded | |", "|---|---|---|---|"]
        for row in own:
            mark = "" if not row.checked else "ok" if row.ok else "**FAIL**"
            said = f"{number(row.found)}{row.unit and ' '}{row.unit}"
            note = f" ({row.note})" if row.note else ""
            lines.append(f"| {row.what}{note} | {said} | {row.bound} | {mark} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
