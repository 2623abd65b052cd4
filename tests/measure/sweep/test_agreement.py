"""Ranks with ties, the median ratio and the monotone fit, against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from engine import protocol as p
from engine.measure.sweep import agreement as a

positive = st.floats(1e-6, 1e3)


def estimate(layer: str, kl: float, dnll: float = 0.1) -> p.Estimate:
    return p.Estimate(
        layer=layer, format="int4", kl=kl, kl_se=0.0, dnll=dnll, dnll_se=0.0, tokens=1
    )


def measured(layer: str, kl: float, dnll: float = 0.1) -> p.Sensitivity:
    return p.Sensitivity(
        layer=layer, format="int4", kl=kl, kl_se=0.0, dnll=dnll, dnll_se=0.0,
        dppl=0.0, dppl_low=0.0, dppl_high=0.0, tokens=1,
    )  # fmt: skip


def agreed(guessed: list[float], found: list[float]) -> p.Agreement | None:
    names = [str(i) for i in range(len(guessed))]
    return a.agreement(
        "int4",
        "degrade",
        {name: estimate(name, kl, -kl) for name, kl in zip(names, guessed, strict=True)},
        {name: measured(name, kl, kl) for name, kl in zip(names, found, strict=True)},
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_the_rank_correlation_is_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    one, other = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    ours = a.spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(float(stats.spearmanr(one, other).statistic), abs=1e-12)


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=30))
@example([(1.0, 1.0), (1000.0, 2.0), (math.nextafter(1000.0, 0.0), 1.0)])  # of one logarithm
def test_the_fit_is_monotone_and_no_other_step_is_nearer(
    pairs: list[tuple[float, float]],
) -> None:
    """Isotonic regression by its min-max formula, at every estimate there is."""
    guessed, found = (np.array(column) for column in zip(*pairs, strict=True))
    knots, heights = a.monotone_fit(guessed, found)
    assert knots == sorted(set(knots))
    assert heights == sorted(heights)
    logs, at = np.log(found), np.log(guessed)
    places = np.unique(at)
    assert len(set(np.log(knots))) == len(knots)
    for i, place in enumerate(places):
        expected = max(
            min(logs[(at >= low) & (at <= high)].mean() for high in places[i:])
            for low in places[: i + 1]
        )
        ours = np.interp(place, np.log(knots), np.log(heights))
        assert ours == pytest.approx(expected, abs=1e-6)


def test_the_ratio_is_the_median_of_measured_over_estimated() -> None:
    found = agreed([1.0, 2.0, 4.0, 8.0], [2.0, 2.0, 8.0, 80.0])
    assert found is not None
    assert found.ratio == 2.0
    assert found.layers == 4
    assert found.rank_kl == pytest.approx(stats.spearmanr([1, 2, 3, 4], [1, 1, 2, 3]).statistic)
    assert found.rank_dnll == pytest.approx(-found.rank_kl)


def test_layers_known_on_one_side_alone_or_not_finite_do_not_count() -> None:
    assert agreed([1.0, 2.0], [1.0, 2.0]) is None
    assert agreed([1.0, 2.0, math.nan], [1.0, 2.0, 3.0]) is None
    found = agreed([1.0, 2.0, 3.0, math.inf], [1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert found.layers == 3
    only = a.agreement(
        "int4",
        "degrade",
        {name: estimate(name, 1.0) for name in "abcd"},
        {name: measured(name, 1.0) for name in "bcdef"},
    )
    assert only is not None
    assert only.layers == 3
    assert math.isnan(only.rank_kl)  # all tie: there is no rank to agree on


def test_a_layer_without_effect_has_no_place_in_ratio_and_fit() -> None:
    found = agreed([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, -1.0])
    assert found is not None
    assert found.layers == 4
    assert found.ratio == 1.0
    assert found.estimated == found.measured == []


def test_what_grows_is_told_at_most_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(a.time, "monotonic", lambda: now[0])
    comparing = a.AgreementTracker("degrade", {"int4": {n: estimate(n, 1.0) for n in "abc"}})
    rows = {name: measured(name, 1.0) for name in "abc"}
    told = 0
    for _ in range(100):
        now[0] += 0.1
        told += len(list(comparing.growing("int4", rows)))
    assert 9 <= told <= 10
    assert len(list(comparing.now("int4", rows))) == 1
    assert not list(comparing.now("int8", rows))


def test_what_rounding_alone_may_measure_is_left_out_of_ratio_and_fit() -> None:
    names = [str(i) for i in range(6)]
    guessed = {name: estimate(name, 10.0**-i) for i, name in enumerate(names)}
    found = {name: measured(name, max(10.0**-i, 1e-3)) for i, name in enumerate(names)}
    whole = a.agreement("int4", "degrade", guessed, found, 1e-3)
    assert whole is not None
    assert whole.ratio == pytest.approx(1.0)
    assert min(whole.estimated) == pytest.approx(1e-2)
    assert whole.layers == 6
