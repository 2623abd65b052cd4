"""Progress of a sweep in layers, and the time left from the cost of the remaining work."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from engine import protocol as p
from engine.measure.sweep.units import Unit
from engine.model.cost import cost_of
from engine.model.network import Network


class SweepProgress:
    """Progress of a sweep; work is counted in multiplications."""

    def __init__(self, job: str, network: Network, todo: Iterable[Unit], total: int) -> None:
        """
        Args:
            job: id of the sweep.
            network: whose layers are measured.
            todo: units to measure, once per format.
            total: including those known already.
        """
        self._cost = cost_of(network)
        left = [self.work(unit) for unit in todo]
        self._left, self._done = math.fsum(left), 0.0
        self._job, self._total, self._finished = job, total, total - len(left)
        self._shares: dict[str, float] = {}
        self._begun = time.perf_counter()

    def work(self, unit: Unit) -> float:
        """Cost of measuring a unit: the forward from its first block on."""
        return self._cost.resumed(unit.start)

    def advance(self, unit: Unit, share: float) -> None:
        """Record that a share of a unit's windows was measured."""
        self._left -= share * self.work(unit)
        self._done += share * self.work(unit)
        self._shares[unit.name] = self._shares.get(unit.name, 0.0) + share

    def finish(self, unit: Unit) -> None:
        """Record that a unit needs no more measurements."""
        self._left -= (1.0 - self._shares.pop(unit.name, 0.0)) * self.work(unit)
        self._finished += 1

    def event(self, unit: Unit, format: str) -> p.Progress:
        """The current progress; the time left is an upper bound if units may end early."""
        spent = time.perf_counter() - self._begun
        left = max(self._left, 0.0) * spent / self._done if self._done else math.nan
        done = min(self._finished + math.fsum(self._shares.values()), self._total)
        return p.Progress(
            job=self._job, done=done, total=self._total, seconds_left=left, phase="measuring",
            subject=unit.name, format=format,
        )  # fmt: skip
