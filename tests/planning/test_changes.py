"""How far estimates at a recipe are believed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.plan.units import Choice, Unit
from engine.planning.changes import TRUSTS, Change, Changes

UNITS = 400


def changes(expected: np.ndarray, estimated: np.ndarray) -> Changes:
    """Of units that hold their first choice, and may take one other."""
    held = Choice(("int4-g32",), 4, 4, 1.0, 0.0)
    other = held._replace(formats=("int8",))
    return Changes(
        [Unit((f"layer{at}",), (held, other)) for at in range(len(expected))],
        [0] * len(expected),
        [
            [Change(0.0, 0.0, 0.0), Change(float(one), float(two), 0.01)]
            for one, two in zip(expected, estimated, strict=True)
        ],
    )


def taken(found: Changes, trust: float) -> list[int]:
    """The choices that make KL least where nothing limits them."""
    return [int(unit.choices[1].kl < unit.choices[0].kl) for unit in found.priced(trust)]


@pytest.mark.parametrize("coupled", [0.0, 0.05, 0.3])
def test_a_measured_recipe_tells_how_far_to_believe_estimates(coupled: float) -> None:
    """Errors of a recipe along one direction, which changes undo to different extents.

    With the recipe's error ``z`` along it, and of every change ``a`` along it, KL holds
    ``½ (z + Σ a)²``: estimates at the recipe have the slope ``z a``, and do not know the products
    of different changes in ``(Σ a)²``.
    """
    random = np.random.default_rng(3)
    along = 0.02 * random.normal(size=UNITS)
    error = -1.0
    expected = random.exponential(0.002, UNITS)
    estimated = expected + coupled * (error * along)
    found = changes(expected, estimated)

    def gain(chosen: list[int]) -> float:
        on = np.array(chosen) == 1
        moved = along[on].sum()
        return float(expected[on].sum() + coupled * (error * moved + 0.5 * moved**2))

    tried = taken(found, 0.5)
    coupling = found.coupling([(tried, gain(tried))])
    solutions = {trust: taken(found, trust) for trust in TRUSTS}
    for chosen in solutions.values():
        assert found.together(chosen, coupling) == pytest.approx(gain(chosen), abs=1e-6)
    best = min(solutions.values(), key=lambda chosen: found.together(chosen, coupling))
    assert gain(best) <= min(map(gain, solutions.values())) + 1e-9
    assert gain(best) <= min(gain(tried), gain(taken(found, 1.0))) + 1e-9
    assert gain(best) < 0 or not coupled


def test_couplings_are_fitted_and_never_negative() -> None:
    found = changes(np.array([1.0, 2.0, 1.0]), np.array([-1.0, 1.0, math.nan]))
    assert found.made([1, 1, 0]) == (3.0, -3.0)
    assert found.made([1, 0, 1]) == (2.0, -2.0), "what was not estimated counts as expected"
    assert found.coupling([([1, 1, 0], 0.9)]) == pytest.approx(0.1)
    both = [([1, 1, 0], 0.9), ([1, 0, 0], -1.0 + 0.8)]
    assert 0.1 < found.coupling(both) == pytest.approx((0.9 * 9 + 0.8 * 4) / (81 + 16))
    assert found.coupling([([1, 1, 0], -5.0)]) == 0.0
    assert found.coupling([([0, 0, 1], 7.0), ([1, 1, 0], math.nan)]) == 0.0
    assert found.together([1, 1, 0], 0.1) == pytest.approx(0.9)
    prices = [[choice.kl for choice in unit.choices] for unit in found.priced(0.5)]
    assert prices == [[0.0, 0.0], [0.0, 1.5], [0.0, 1.0]]
    assert [choice.formats for choice in found.priced(0.5)[0].choices] == [("int4-g32",), ("int8",)]
