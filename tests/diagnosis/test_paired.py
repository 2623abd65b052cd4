"""Differences window by window, and their interval, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_rel

from engine.diagnosis.paired import paired, student


def test_students_interval_is_scipys() -> None:
    for freedom in [*range(1, 40), 63, 255, 4095]:
        for interval in (0.9, 0.95, 0.99):
            expected = float(stdtrit(freedom, 0.5 + interval / 2))
            assert student(freedom, interval) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 16, 64])
def test_a_paired_difference_is_that_of_a_t_test(count: int) -> None:
    random = np.random.default_rng(count)
    one = random.normal(1.0, 0.2, count)
    other = one - random.normal(0.1, 0.05, count)
    found = paired(one.tolist(), other.tolist())
    test = ttest_rel(one, other)
    low, high = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(float((one - other).mean()))
    assert found.interval == pytest.approx((low, high), rel=1e-5)
    assert found.above == (low > 0)


def test_what_cannot_be_paired_has_no_difference() -> None:
    for pair in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
        found = paired(*pair)
        assert math.isnan(found.mean)
        assert not found.above
