"""How far estimates at a recipe are believed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.plan.units import Choice, Unit
from engine.planning.changes import Change, Changes

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


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_what_was_measured_tells_how_much_of_the_estimates_is_true(
    signal: float, noise: float
) -> None:
    """True changes about the expected ones, estimates about the true ones."""
    random = np.random.default_rng(3)
    expected = random.exponential(1.0, UNITS)
    true = expected + signal * random.normal(size=UNITS)
    found = changes(expected, true + noise * random.normal(size=UNITS))

    def gain(chosen: list[int]) -> float:
        return float(true[np.array(chosen) == 1].sum())

    believed = taken(found, 1.0)
    share = found.realised(believed, gain(believed), 1.0)
    assert share == pytest.approx(signal**2 / (signal**2 + noise**2), abs=0.15)
    # Believed that far, estimates find changes that are worth more, or at least lose nothing.
    again = gain(taken(found, share))
    assert again <= gain(believed) + 1e-9
    assert again <= 0.02 * UNITS


def test_a_trust_is_a_share_and_stays_where_nothing_tells() -> None:
    found = changes(np.array([1.0, 2.0, 1.0]), np.array([-1.0, 1.0, math.nan]))
    assert found.realised([1, 1, 0], 3.0 - 0.3 * 3.0, 0.5) == pytest.approx(0.3)
    assert found.realised([1, 1, 0], -5.0, 0.5) == 1.0
    assert found.realised([1, 1, 0], 9.0, 0.5) == 0.0
    assert found.realised([0, 0, 0], 0.0, 0.5) == 0.5
    assert found.realised([0, 0, 1], 1.0, 0.5) == 0.5
    assert found.realised([1, 0, 0], math.nan, 0.5) == 0.5
    prices = [[choice.kl for choice in unit.choices] for unit in found.priced(0.5)]
    assert prices == [[0.0, 0.0], [0.0, 1.5], [0.0, 1.0]]
    assert [choice.formats for choice in found.priced(0.5)[0].choices] == [("int4-g32",), ("int8",)]
