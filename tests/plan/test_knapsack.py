"""The knapsack against every combination there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan.knapsack import Choices, Frontier, cheapest


def everything(choices: Choices) -> list[tuple[float, float]]:
    """Weight and cost of every combination."""
    units, count = choices.cost.shape
    found = []
    for chosen in itertools.product(range(count), repeat=units):
        cost = math.fsum(float(choices.cost[u, c]) for u, c in enumerate(chosen))
        if math.isfinite(cost):
            weight = math.fsum(float(choices.weight[u, c]) for u, c in enumerate(chosen))
            found.append((weight, cost))
    return found


@st.composite
def problems(draw: st.DrawFn, units: int = 5) -> tuple[Choices, float]:
    rows, columns = draw(st.integers(1, units)), draw(st.integers(1, 4))
    whole = st.integers(0, 30).map(float)
    large = st.integers(1, 40).map(lambda bits: float(bits * 123_456_789))
    weight = draw(st.sampled_from([whole, large, st.integers(0, 10**6).map(lambda kl: kl / 1e7)]))
    small = st.floats(0, 1, allow_subnormal=False).map(lambda kl: kl * 1e-6)
    cost = draw(st.sampled_from([st.floats(0, 10, allow_subnormal=False), small, whole]))
    gone = st.sampled_from([False, False, False, True])
    costs = np.array([[draw(cost) for _ in range(columns)] for _ in range(rows)])
    weights = np.array([[draw(weight) for _ in range(columns)] for _ in range(rows)])
    for row in costs[:, 1:]:
        row[[draw(gone) for _ in row]] = np.inf
    choices = Choices(costs, weights)
    totals = sorted({w for w, _ in everything(choices)})
    limit = draw(st.sampled_from([*totals, totals[0] - 1e-3, totals[-1] * 1.5]))
    return choices, limit


@settings(max_examples=150, deadline=None)
@given(problems())
def test_no_combination_within_the_limit_costs_less(problem: tuple[Choices, float]) -> None:
    choices, limit = problem
    within = [cost for weight, cost in everything(choices) if weight <= limit]
    found = cheapest(choices, limit)
    if not within:
        assert found is None
        return
    assert found is not None
    assert (found.cost, found.weight) == choices.total(found.chosen)
    assert found.weight <= limit
    assert found.cost == pytest.approx(min(within), rel=1e-9, abs=1e-18)
    assert found.bound == found.cost


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_frontier_is_optimal_at_its_points_and_a_bound_between_them(
    problem: tuple[Choices, float],
) -> None:
    choices, limit = problem
    every = everything(choices)
    frontier = Frontier(choices)
    assert (np.diff(frontier.weight) > 0).all()
    assert (np.diff(frontier.cost) <= 0).all()
    for at in range(len(frontier)):
        cost, weight = choices.total(frontier.chosen(at))
        assert (cost, weight) == pytest.approx((frontier.cost[at], frontier.weight[at]))
        assert cost == pytest.approx(min(c for w, c in every if w <= weight), rel=1e-9, abs=1e-18)
    within = [cost for weight, cost in every if weight <= limit]
    bound = frontier.bound(limit)
    if not within:
        assert bound == math.inf
        assert frontier.within(limit) == -1
        return
    assert bound <= min(within) * (1 + 1e-9) + 1e-18
    kept = choices.total(frontier.chosen(frontier.within(limit)))[0]
    assert bound <= kept + 1e-18


def test_eight_units_of_four_choices_equal_every_combination() -> None:
    for seed in range(12):
        random = np.random.default_rng(seed)
        weight = random.integers(1, 60, (8, 4)).astype(float)
        cost = random.exponential(size=(8, 4)) / weight * 1e-4
        choices = Choices(cost, weight)
        every = everything(choices)
        limits = np.quantile([w for w, _ in every], [0, 0.1, 0.5, 0.9])
        for limit in limits:
            found = cheapest(choices, float(limit))
            assert found is not None
            best = min(cost for weight, cost in every if weight <= limit)
            assert found.cost == pytest.approx(best, rel=1e-9)


def layers(units: int, formats: int, seed: int = 0) -> Choices:
    """Like a model: sizes of a few kinds, KL that falls fourfold a bit and differs by layer."""
    random = np.random.default_rng(seed)
    size = random.choice([2**20, 2**22, 11 * 2**20], units)[:, None]
    bits = np.linspace(2.1, 16, formats)[None]
    worst = np.exp(random.normal(-7, 2, (units, 1)))
    noise = np.exp(random.normal(0, 0.2, (units, formats)))
    return Choices(worst * 4.0 ** (2 - bits) * noise, np.rint(size * bits))


def test_two_thousand_units_are_solved_within_a_proven_gap() -> None:
    choices = layers(2000, 12)
    lightest = choices.weight.min(1).sum()
    found = cheapest(choices, float(lightest * 2.1), seconds=0.3)
    assert found is not None
    assert found.weight <= lightest * 2.1
    assert 0 <= found.gap < 1e-3


def test_a_unit_without_a_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="no choice"):
        Choices(np.array([[math.inf]]), np.array([[1.0]]))
