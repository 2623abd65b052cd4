"""Intervals against published examples and scipy."""

from __future__ import annotations

import itertools

import pytest
from scipy.stats import binomtest, multinomial

from engine.diagnosis.proportions import mcnemar, paired_difference, wilson


@pytest.mark.parametrize(("count", "total"), [(0, 7), (3, 7), (7, 7), (81, 263), (15, 148)])
def test_wilsons_interval_equals_scipys(count: int, total: int) -> None:
    theirs = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (5, 0), (8, 2), (3, 3), (1, 20)])
def test_the_test_of_pairs_equals_the_binomial(one: int, other: int) -> None:
    theirs = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(theirs)


def test_the_interval_of_a_difference_holds_the_true_one_as_often_as_it_says() -> None:
    """Over every table of 20 items, weighed by how likely it is."""
    shares = (0.6, 0.15, 0.1, 0.15)
    covered = 0.0
    for both, lost, gained in itertools.product(range(21), repeat=3):
        if (neither := 20 - both - lost - gained) < 0:
            continue
        cells = (both, lost, gained, neither)
        _, low, high = paired_difference(*cells)
        if low <= shares[2] - shares[1] <= high:
            covered += float(multinomial.pmf(cells, 20, shares))
    assert 0.94 < covered < 0.99


def test_the_interval_of_a_difference_turns_with_the_sides() -> None:
    difference, low, high = paired_difference(36, 12, 2, 0)
    assert difference == pytest.approx(-0.2)
    # Method 10 of Newcombe 1998 for these counts.
    assert (low, high) == pytest.approx((-0.3404, -0.0569), abs=1e-4)
    turned = paired_difference(36, 2, 12, 0)
    assert turned == pytest.approx((0.2, -high, -low))
    assert paired_difference(0, 0, 0, 0) == (0.0, -1.0, 1.0)
