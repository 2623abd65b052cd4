"""Progress of a sweep in layers, and the time left from the cost of the remaining work."""

from __future__ import annotations

import math
from collections.abc import Iterable

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.estimate.estimate import EACH_FORMAT, ESTIMATES
from engine.measure.evaluation.reference import reference_of
from engine.measure.sweep.units import Unit
from engine.model.cost import cost_of
from engine.model.network import Network
from engine.workspace import Loaded

CONTROL = 2.0
"""What the control costs, in micro-batches of the reference."""


def before_ranked(loaded: Loaded, formats: int) -> float:
    """Micro-batches that what lies between the reference and the ranking takes as long as."""
    batches = len(reference_of(loaded).batches)
    return CONTROL + batches * (ESTIMATES + EACH_FORMAT * formats)


class SweepProgress:
    """Progress of a sweep. A unit takes a constant and a part that grows with its blocks.

    Both are fitted to the units so far: quantising a layer and comparing logits cost the same
    wherever the layer is, running the blocks after it does not.
    """

    def __init__(
        self, counts: JobCounts, network: Network, todo: Iterable[Unit], total: int
    ) -> None:
        """
        Args:
            counts: of the sweep; the seconds of its timed steps say how long a unit takes.
            network: whose layers are measured.
            todo: units to measure, once per format.
            total: including those known already.
        """
        self._cost = cost_of(network)
        left = [self.work(unit) for unit in todo]
        self._left, self._units_left = math.fsum(left), float(len(left))
        self._counts, self._total, self._finished = counts, total, total - len(left)
        self._shares: dict[str, float] = {}
        self._seen = counts.computed
        self.hands = 1
        """How many processes measure."""
        # Sums over what was measured, for the fit: units, work, work², seconds, work × seconds.
        self._n = self._x = self._xx = self._y = self._xy = 0.0
        if math.isfinite(counts.forward):
            # The reference counts as a unit that changes the first block.
            self._observe(1.0, self._cost.resumed(-1), counts.forward)

    def begin(self) -> None:
        """Count the seconds from now on as those of units."""
        self._seen = self._counts.computed

    def work(self, unit: Unit) -> float:
        """Cost of measuring a unit: the forward from its first block on."""
        return self._cost.resumed(unit.start)

    def advance(self, unit: Unit, share: float, *, known: bool = False) -> None:
        """Record that a share of a unit's windows was measured, now or (``known``) before."""
        work = self.work(unit)
        self._left -= share * work
        self._units_left -= share
        self._shares[unit.name] = self._shares.get(unit.name, 0.0) + share
        if known or not share:
            return
        spent, self._seen = self._counts.computed - self._seen, self._counts.computed
        self._observe(share, work, spent)

    def _observe(self, share: float, work: float, seconds: float) -> None:
        self._n += share
        self._x += share * work
        self._xx += share * work * work
        self._y += seconds
        self._xy += seconds * work

    def finish(self, unit: Unit) -> None:
        """Record that a unit needs no more measurements."""
        left = 1.0 - self._shares.pop(unit.name, 0.0)
        self._left -= left * self.work(unit)
        self._units_left -= left
        self._finished += 1

    def seconds_left(self) -> float:
        """Seconds for what is left, by the least-squares fit; nan before the first unit."""
        if not self._x:
            return math.nan
        spread = self._n * self._xx - self._x * self._x
        slope = self._y / self._x
        base = 0.0
        # Only once the units so far differ enough does the fit say anything about others.
        if self._n >= 1 and spread > 1e-3 * self._n * self._xx:
            fitted = (self._n * self._xy - self._x * self._y) / spread
            slope = min(max(fitted, 0.0), slope)
            base = (self._y - slope * self._x) / self._n
        return max(slope * self._left + base * self._units_left, 0.0) / self.hands

    def _with(self) -> str:
        workers = self.hands - 1
        return f"with {workers} worker{'' if workers == 1 else 's'}" if workers else ""

    def event(self, unit: Unit, format: str) -> p.Progress:
        """The current progress; the time left is an upper bound if units may end early."""
        done = min(self._finished + math.fsum(self._shares.values()), self._total)
        return p.Progress(
            job=self._counts.job, done=done, total=self._total, seconds_left=self.seconds_left(),
            phase="measuring", subject=unit.name, format=format, detail=self._with(),
        )  # fmt: skip
