"""The test that leaves layers out holds the error rate it states, also where windows are skewed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from engine.errors import UsageError
from engine.measure.sweep.exactness import Exactness, parse_exactness
from engine.measure.sweep.top_k import (
    ERROR,
    LEAST,
    Evidence,
    Values,
    evidence,
    outside,
    well_known,
)


def table(
    chance: np.random.Generator, rows: int, windows: int, shared: float, own: float, spread: float
) -> Values:
    """``[rows, windows]``: a row's size, times how hard a window is for all, times its own."""
    size = np.exp(chance.normal(0, spread, (rows, 1)))
    hard = np.exp(chance.normal(-(shared**2) / 2, shared, windows))
    each: Values = np.exp(chance.normal(-(own**2) / 2, own, (rows, windows)))
    found: Values = size * hard * each
    return found


def looked_at(values: Values, top: int, batch: int) -> list[set[int]]:
    """The rows that each look, or one before, leaves out; a look adds a micro-batch of windows."""
    windows = values.shape[1]
    looks = -(-windows // batch)
    left_out: list[set[int]] = []
    for seen in range(batch, windows + 1, batch):
        rows = {str(i): evidence(row[:seen]) for i, row in enumerate(values)}
        found = {int(name) for name in outside(rows, windows, top, looks)}
        left_out.append(found.union(*left_out[-1:]))
    return left_out


@pytest.mark.parametrize("tables", [400, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("shared", "own", "spread", "least_power"),
    [(0.3, 0.2, 1.0, 0.6), (1.0, 0.7, 0.5, 0.0), (0.2, 1.0, 0.05, 0.0)],
    ids=["as seen in models", "strongly skewed", "nearly equal and strongly skewed"],
)
def test_a_row_of_the_largest_is_left_out_less_often_than_stated(
    shared: float, own: float, spread: float, least_power: float, tables: int
) -> None:
    chance = np.random.default_rng(5)
    rows, windows, top, batch = 8, 24, 2, 6
    wrong, rightly, possible = 0, 0, 0
    for _ in range(tables):
        values = table(chance, rows, windows, shared, own, spread)
        largest = set(np.argsort(-values.mean(axis=1))[:top].tolist())
        left_out = looked_at(values, top, batch)
        wrong += bool(left_out[-1] & largest)
        rightly += len(left_out[windows // 2 // batch - 1] - largest)
        possible += rows - top
    assert wrong / tables <= ERROR
    assert rightly / possible >= least_power


def test_with_all_windows_seen_exactly_the_others_are_outside() -> None:
    values = table(np.random.default_rng(1), 20, 16, 1.0, 1.0, 0.1)
    rows = {str(i): evidence(row) for i, row in enumerate(values)}
    largest = set(np.argsort(-values.mean(axis=1))[:5].tolist())
    assert {int(name) for name in outside(rows, 16, 5, 8)} == set(range(20)) - largest


def test_a_bound_is_students_t_of_paired_differences_with_the_finite_population() -> None:
    """Two rows, one pair, one look: against SciPy's own test of paired samples."""
    chance = np.random.default_rng(3)
    one = chance.normal(1.0, 0.3, 8)
    p_values = []
    for shift in np.linspace(0.0, 0.4, 41):
        other = one - shift + chance.normal(0, 0.15, 8)
        endless = 10**9  # so many windows that the correction is none
        found = outside({"a": evidence(one), "b": evidence(other)}, endless, 1, 1)
        p_value = float(stats.ttest_rel(one, other, alternative="greater").pvalue)
        assert ("b" in found) == (p_value < ERROR)
        p_values.append(p_value)
    assert min(p_values) < ERROR < max(p_values)


def test_rows_known_by_their_sums_alone_are_told_apart_too() -> None:
    far = Evidence(10.0, 0.1, 12)
    near = Evidence(1.0, 0.1, 12)
    measured = evidence(np.full(12, 2.0) + np.linspace(-0.1, 0.1, 12))
    assert outside({"far": far, "near": near, "measured": measured}, 48, 1, 4) == {
        "near",
        "measured",
    }
    whole = Evidence(2.001, 5.0, 48)  # all windows: its standard error says nothing any more
    rows = {"whole": whole, "other": Evidence(2.0, 5.0, 48)}
    assert outside(rows, 48, 1, 4) == {"other"}


def test_one_window_and_what_is_not_a_number_leave_nothing_out() -> None:
    one = {name: evidence(np.array([value])) for name, value in (("a", 100.0), ("b", 0.001))}
    assert outside(one, 64, 1, 64) == set()
    broken = evidence(np.full(32, math.nan))
    fine = evidence(np.full(32, 1.0))
    assert outside({"broken": broken, "fine": fine}, 64, 1, 8) == set()
    assert not well_known(broken)


def test_as_many_rows_as_are_asked_for_are_all_among_them() -> None:
    rows = {str(i): evidence(np.full(16, float(i))) for i in range(5)}
    assert outside(rows, 32, 5, 4) == set()
    assert outside(rows, 32, 9, 4) == set()
    assert outside(rows, 32, 4, 4) == {"0"}


def test_figures_that_end_by_their_own_precision_hold_about_as_often_as_stated() -> None:
    """The interval at the moment a row is known well, against the mean it is drawn from."""
    chance = np.random.default_rng(11)
    held = ended = 0
    for _ in range(2000):
        sigma = 0.3
        values = np.exp(chance.normal(-(sigma**2) / 2, sigma, 128))
        for seen in range(4, 129, 4):
            row = evidence(values[:seen])
            if well_known(row):
                half = float(stats.t.ppf(0.975, row.windows - 1)) * row.se
                assert seen >= LEAST
                assert half <= 0.1 * row.mean
                held += abs(row.mean - 1.0) <= half
                ended += 1
                break
    assert ended == 2000
    assert held / ended >= 0.9


@pytest.mark.parametrize("text", ["all", "none", "top:1", "top:250"])
def test_an_effort_prints_as_it_is_typed(text: str) -> None:
    assert str(parse_exactness(text)) == text


def test_exactness_means_what_it_says() -> None:
    assert [parse_exactness(t) for t in ("all", "none", "top:7")] == [
        Exactness(None),
        Exactness(0),
        Exactness(7),
    ]


@pytest.mark.parametrize("text", ["", "some", "top", "top:", "top:0", "top:-1", "top:x", "top:²"])
def test_an_effort_that_says_nothing_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="top:10"):
        parse_exactness(text)


def test_beaters_are_found_among_many_rows_as_among_few() -> None:
    """Only the largest may beat others: what is left out is what comparing all pairs leaves out."""
    chance = np.random.default_rng(2)
    values = table(chance, 30, 40, 0.3, 0.2, 0.8)
    rows = {str(i): evidence(row[:20]) for i, row in enumerate(values)}
    top, looks = 4, 5
    alpha = ERROR / (looks * top * (30 - top))
    beaten = np.zeros(30, dtype=int)
    for i, j in itertools.permutations(range(30), 2):
        gap = values[j, :20] - values[i, :20]
        se = gap.std(ddof=1) / math.sqrt(20) * math.sqrt(1 - 20 / 40)
        beaten[i] += gap.mean() - stats.t.ppf(1 - alpha, 19) * se > 0
    expected = {str(i) for i in range(30) if beaten[i] >= top}
    assert 0 < len(expected) < 26
    assert outside(rows, 40, top, looks) == expected
