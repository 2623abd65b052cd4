"""What other choices add to the KL of a recipe: two opinions, and what many changes do together.

The first opinion are the differences of effects at the unchanged model; they know nothing of what
layers do together. The second are estimates at the recipe, which do, for one change at a time. Many
changes that were chosen because they undo the same error of the recipe overshoot: with ``E`` the
sum of the first over the changes made, and ``D`` of what the second differ by,

    KL(R with all of them) − KL(R) ≈ E + D + c D²,

where the *coupling* ``c`` is seen once a recipe is measured that the estimates chose. So of the
estimates only a part is believed, the *trust*, and the best part follows from ``c``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.plan.units import Unit

TRUST = 0.5
"""Before anything that the estimates chose is measured."""
TRUSTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""That are looked at once the coupling is known."""


class Change(NamedTuple):
    """What another choice for one unit adds to a recipe's KL."""

    expected: float
    """Difference of the effects at the unchanged model."""
    estimated: float
    """As estimated at the recipe; nan where it was not."""
    variance: float
    """Of the estimate."""

    @property
    def apart(self) -> float:
        """What the estimate differs by; 0 where there is none."""
        return self.estimated - self.expected if math.isfinite(self.estimated) else 0.0

    def kl(self, trust: float) -> float:
        """What to expect, from 0 for the effects alone to 1 for the estimate alone."""
        return self.expected + trust * self.apart


@dataclass(frozen=True)
class Changes:
    """Of every choice of every unit."""

    units: Sequence[Unit]
    chosen: Sequence[int]
    """Every unit's choice in the recipe."""
    of_choices: Sequence[Sequence[Change]]
    """For each unit, of each of its choices."""

    def priced(self, trust: float) -> list[Unit]:
        """The units, with what every choice adds to the recipe's KL."""
        return [
            unit._replace(
                choices=tuple(
                    choice._replace(kl=change.kl(trust), variance=change.variance)
                    for choice, change in zip(unit.choices, changes, strict=True)
                )
            )
            for unit, changes in zip(self.units, self.of_choices, strict=True)
        ]

    def made(self, chosen: Sequence[int]) -> tuple[float, float]:
        """Sums over the changes that lead to other choices: expected, and what estimates differ by.

        Args:
            chosen: every unit's choice.
        """
        made = [
            changes[at]
            for changes, at, before in zip(self.of_choices, chosen, self.chosen, strict=True)
            if at != before
        ]
        return math.fsum(each.expected for each in made), math.fsum(each.apart for each in made)

    def coupling(self, measured: Iterable[tuple[Sequence[int], float]]) -> float:
        """How much changes overshoot together, by least squares; not negative.

        Args:
            measured: choices of recipes, and their KL less that of the recipe that is changed.
        """
        above = below = 0.0
        for chosen, gain in measured:
            expected, apart = self.made(chosen)
            if math.isfinite(gain):
                above += (gain - expected - apart) * apart**2
                below += apart**4
        return max(0.0, above / below) if below else 0.0

    def together(self, chosen: Sequence[int], coupling: float) -> float:
        """What choices add to the recipe's KL."""
        expected, apart = self.made(chosen)
        return expected + apart + coupling * apart**2
