"""The multiple-choice knapsack problem: one choice for every unit, at the least cost in a limit.

Relaxed to fractions of choices, it is solved by the lower convex hull of every unit's choices and a
sort by slope (Sinha and Zoltners 1979, "The multiple-choice knapsack problem"): every prefix of the
sorted steps is optimal for its own weight, which gives the whole frontier at once, and between two
prefixes the straight line is a lower bound that no solution can pass.

For one limit, choices that cannot be part of a better solution than the best one known are left out
by that bound; what remains is small, and `scipy.optimize.milp` solves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.plan.quiet import without_stdout

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

SECONDS = 2.0
"""Time that the solver of one limit gets; after it, the best solution so far, with its bound."""
TOLERANCE = 1e-9
"""Relative difference of two costs that counts as none."""
LARGEST = 1e6
"""What costs and weights are scaled to: the solver has absolute tolerances of 1e-6."""


@dataclass(frozen=True, eq=False)
class Choices:
    """What there is to choose from; rows are units, columns their choices."""

    cost: Floats
    """``[units, choices]``, what is made small; infinite where a unit has no such choice."""
    weight: Floats
    """``[units, choices]``, what is limited; sums of whole numbers below 2⁵³ are exact."""

    def __post_init__(self) -> None:
        if self.cost.shape != self.weight.shape or self.cost.ndim != 2:
            raise ValueError(f"costs {self.cost.shape} and weights {self.weight.shape} differ")
        if not np.isfinite(self.cost).any(1).all():
            raise ValueError("a unit has no choice of a finite cost")

    def total(self, chosen: Ints) -> tuple[float, float]:
        """Cost and weight of one choice for every unit."""
        units = np.arange(len(chosen))
        return (
            math.fsum(self.cost[units, chosen].tolist()),
            math.fsum(self.weight[units, chosen].tolist()),
        )


@dataclass(frozen=True)
class Solution:
    """One choice for every unit."""

    chosen: Ints
    """``[units]``."""
    cost: float
    weight: float
    bound: float
    """No choice within the limit costs less; equal to `cost` where it is proven to be the best."""

    @property
    def gap(self) -> float:
        """How far the cost may be from the least, as a share of it."""
        return (self.cost - self.bound) / self.cost if self.cost > self.bound else 0.0


class Frontier:
    """Every solution on the lower convex hull of cost over weight."""

    def __init__(self, choices: Choices) -> None:
        """
        Args:
            choices: of all units.
        """
        self.choices = choices
        steps = [
            (unit, *step) for unit in range(len(choices.cost)) for step in _hull(choices, unit)
        ]
        self._start = np.array([_lightest(choices, unit) for unit in range(len(choices.cost))])
        unit, to, weight, cost = (
            np.array([step[at] for step in steps], dtype=kind)
            for at, kind in enumerate((np.intp, np.intp, np.float64, np.float64))
        )
        with np.errstate(all="ignore"):
            slope = cost / weight
        # Stable: the steps of one unit keep their order where rounding makes their slopes equal.
        order = np.argsort(slope, kind="stable")
        self._unit, self._to = unit[order], to[order]
        first_cost, first_weight = choices.total(self._start)
        added = np.cumsum(weight[order]), np.cumsum(cost[order])
        self.weight: Floats = np.concatenate([[first_weight], first_weight + added[0]])
        """Of every solution, in rising order, ``[solutions]``."""
        self.cost: Floats = np.concatenate([[first_cost], first_cost + added[1]])
        """Of every solution, in falling order, ``[solutions]``."""

    def __len__(self) -> int:
        return len(self.weight)

    def chosen(self, at: int) -> Ints:
        """The choices of one solution, ``[units]``."""
        chosen = self._start.copy()
        chosen[self._unit[:at]] = self._to[:at]  # of a unit's steps the last one counts
        return chosen

    def within(self, limit: float) -> int:
        """The last solution within a limit; -1 if there is none."""
        at = int(np.searchsorted(self.weight, limit, side="right")) - 1
        # The running sums are rounded.
        while at >= 0 and self.choices.total(self.chosen(at))[1] > limit:
            at -= 1
        while at + 1 < len(self) and self.choices.total(self.chosen(at + 1))[1] <= limit:
            at += 1
        return at

    def bound(self, limit: float) -> float:
        """A cost that no choice within the limit is below; infinite if there is no such choice."""
        at = self.within(limit)
        if at < 0:
            return math.inf
        cost, weight = self.choices.total(self.chosen(at))
        if at + 1 == len(self):
            return cost
        return float(cost + (limit - weight) * self.slope(at))

    def slope(self, at: int) -> float:
        """Cost per weight from one solution to the next; 0 after the last."""
        if at + 1 >= len(self):
            return 0.0
        run = self.weight[at + 1] - self.weight[at]
        return float((self.cost[at + 1] - self.cost[at]) / run)


def _lightest(choices: Choices, unit: int) -> int:
    """The lightest choice of a unit, and of several the cheapest."""
    cost, weight = choices.cost[unit], choices.weight[unit]
    there = np.flatnonzero(np.isfinite(cost))
    return int(min(there, key=lambda at: (weight[at], cost[at])))


def _hull(choices: Choices, unit: int) -> list[tuple[int, float, float]]:
    """Steps along the lower convex hull of a unit: to which choice, added weight, added cost."""
    cost, weight = choices.cost[unit].tolist(), choices.weight[unit].tolist()
    there = (at for at in range(len(cost)) if math.isfinite(cost[at]))
    hull: list[int] = []
    for at in sorted(there, key=lambda at: (weight[at], cost[at])):
        if hull and cost[at] >= cost[hull[-1]]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], at, cost, weight):
            hull.pop()
        hull.append(at)
    return [(b, weight[b] - weight[a], cost[b] - cost[a]) for a, b in pairwise(hull)]


def _above(a: int, b: int, c: int, cost: list[float], weight: list[float]) -> bool:
    """Whether ``b`` is on or above the line from ``a`` to ``c``."""
    return (cost[b] - cost[a]) * (weight[c] - weight[b]) >= (cost[c] - cost[b]) * (
        weight[b] - weight[a]
    )


def cheapest(choices: Choices, limit: float, *, seconds: float = SECONDS) -> Solution | None:
    """The least cost within a limit; None if even the lightest choices exceed it.

    Args:
        choices: of all units.
        limit: on the sum of weights.
        seconds: after which the best solution so far is returned, with its bound.
    """
    frontier = Frontier(choices)
    at = frontier.within(limit)
    if at < 0:
        return None
    chosen = _filled(choices, frontier.chosen(at), limit)
    cost, weight = choices.total(chosen)
    bound = min(cost, frontier.bound(limit))
    slope = frontier.slope(at)
    core = _core(choices, slope, limit, cost)
    if slope == 0 or (core.sum(1) <= 1).all():
        return Solution(chosen, cost, weight, cost)
    found = _solved(choices, core, chosen, limit, seconds)
    if found is None:
        return Solution(chosen, cost, weight, bound)
    better, saved = found
    bound = max(bound, float(cost - saved))
    if choices.total(better)[0] < cost:
        chosen = better
        cost, weight = choices.total(chosen)
    proven = cost - bound <= TOLERANCE * cost
    return Solution(chosen, cost, weight, cost if proven else min(cost, bound))


def _filled(choices: Choices, chosen: Ints, limit: float) -> Ints:
    """A solution with what is left of the limit spent, on the largest gains first."""
    chosen = chosen.copy()
    _, weight = choices.total(chosen)
    units = np.arange(len(chosen))
    while True:
        more = choices.weight - choices.weight[units, chosen][:, None]
        gain = choices.cost[units, chosen][:, None] - choices.cost
        gain = np.where((more <= limit - weight) & (gain > 0), gain, 0.0)
        unit, to = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[unit, to] <= 0:
            return chosen
        previous = chosen[unit]
        chosen[unit] = to
        _, weight = choices.total(chosen)
        if weight > limit:  # the differences are rounded
            chosen[unit] = previous
            return chosen


def _core(choices: Choices, slope: float, limit: float, cost: float) -> NDArray[np.bool_]:
    """Choices that a solution cheaper than ``cost`` may contain, ``[units, choices]``.

    With a price on weight every unit decides alone: the sum of their least prices, less that of the
    limit, is a bound, and a choice raises it by what it is dearer than its unit's best.
    """
    price = choices.cost - slope * choices.weight
    least = price.min(1, keepdims=True)
    bound = math.fsum(least[:, 0].tolist()) + slope * limit
    slack = abs(cost) * TOLERANCE + abs(slope * limit) * 1e-12
    core: NDArray[np.bool_] = price - least <= max(0.0, cost - bound) + slack
    return core & np.isfinite(choices.cost)


def _solved(
    choices: Choices, core: NDArray[np.bool_], chosen: Ints, limit: float, seconds: float
) -> tuple[Ints, float] | None:
    """The best solution in a core, and what any could save at most; None if none was found."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    unit, choice = np.nonzero(core)
    units = np.arange(len(chosen))
    # Of the differences to the known solution only those of the core matter, and those are small.
    cost = choices.cost[unit, choice] - choices.cost[units, chosen][unit]
    weight = choices.weight[unit, choice] - choices.weight[units, chosen][unit]
    room = limit - choices.total(chosen)[1]
    cost_scale = LARGEST / max(np.abs(cost).max(), 1e-300)
    weight_scale = _weight_scale(weight)
    here = np.unique(unit)
    one_each = csr_array(
        (np.ones(len(unit)), (np.searchsorted(here, unit), np.arange(len(unit)))),
        shape=(len(here), len(unit)),
    )
    for tighter in range(3):
        with without_stdout():
            found = milp(
                cost * cost_scale,
                integrality=np.ones(len(unit)),
                bounds=Bounds(0, 1),
                constraints=[
                    LinearConstraint(one_each, 1, 1),
                    LinearConstraint(weight[None] * weight_scale, -np.inf, room * weight_scale),
                ],
                options={"mip_rel_gap": 0.0, "time_limit": seconds},
            )
        if found.x is None:
            return None
        better = chosen.copy()
        taken = found.x > 0.5
        better[unit[taken]] = choice[taken]
        over = choices.total(better)[1] - limit
        if over <= 0:
            saved = -found.mip_dual_bound / cost_scale if not tighter else math.inf
            return better, saved
        room -= over  # within the solver's tolerance, not within the limit
    return None


def _weight_scale(weight: Floats) -> float:
    """What weights are multiplied by: whole numbers stay whole, in units of their divisor."""
    largest = float(np.abs(weight).max())
    if largest == 0:
        return 1.0
    if largest < 2**53 and (weight == np.rint(weight)).all():
        divisor = int(np.gcd.reduce(np.abs(weight).astype(np.int64)))
        if largest / divisor <= LARGEST:
            return 1.0 / divisor
    return LARGEST / largest
