"""What other choices add to the KL of a recipe: two opinions, and how far the second is believed.

The first are the differences of effects at the unchanged model; they know nothing of what layers do
together. The second are estimates at the recipe, which do; but they have errors of their own, and
of a thousand changes a solver takes those whose errors flatter them. How much of what they say is
true is seen once a recipe is measured that they chose: that share is the *trust* of the next
solution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.plan.units import Unit

TRUST = 0.5
"""Before anything that the estimates chose is measured."""


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

    def realised(self, chosen: Sequence[int], gain: float, trust: float) -> float:
        """The trust that explains what a recipe measured, from 0 to 1.

        Args:
            chosen: every unit's choice in it.
            gain: its KL less that of the recipe that these are changes of.
            trust: what is returned where nothing tells.
        """
        made = [
            changes[at]
            for changes, at, before in zip(self.of_choices, chosen, self.chosen, strict=True)
            if at != before
        ]
        apart = math.fsum(change.apart for change in made)
        if not apart or not math.isfinite(gain):
            return trust
        share = (gain - math.fsum(change.expected for change in made)) / apart
        return min(1.0, max(0.0, share))
