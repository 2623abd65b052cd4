"""The fit of measured to estimated KL: straight between knots in log-log, a ratio outside."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import protocol as p
from engine.session import Session, apply, predict
from engine.session.correction import LEAST_PAIRS, corrected, fitted
from tests.qtui import replay as r


def agreement(
    estimated: list[float],
    measured: list[float],
    layers: int = LEAST_PAIRS,
    ratio: float | None = None,
) -> p.Agreement:
    """With the ratio of the first knot where none is given."""
    if ratio is None:
        ratio = measured[0] / estimated[0] if estimated and estimated[0] else math.nan
    return p.Agreement(
        format=r.FORMAT, layers=layers, rank_kl=0.9, rank_dnll=0.9, ratio=ratio,
        estimated=estimated, measured=measured,
    )  # fmt: skip


KL = st.floats(1e-9, 10)


@given(st.lists(st.tuples(KL, KL), min_size=1, max_size=12), KL)
def test_between_knots_it_is_the_interpolation_of_logarithms(
    knots: list[tuple[float, float]], estimate: float
) -> None:
    x = sorted({round(math.log(each), 3) for each, _ in knots})
    y = np.maximum.accumulate([math.log(value) for _, value in knots][: len(x)])
    fit = fitted(agreement([math.exp(each) for each in x], np.exp(y).tolist()))
    assert fit is not None
    at = math.log(estimate)
    if at <= x[0]:
        expected = at + y[0] - x[0]
    elif at >= x[-1]:
        expected = at + y[-1] - x[-1]
    else:
        expected = float(np.interp(at, x, y))
    assert math.log(fit.kl(estimate)) == pytest.approx(expected, abs=1e-6)


@given(st.lists(KL, min_size=1, max_size=10, unique=True), st.lists(KL, min_size=10, max_size=10),
       st.lists(KL, min_size=2, max_size=2))  # fmt: skip
def test_it_never_turns_two_estimates_round(
    estimated: list[float], measured: list[float], pair: list[float]
) -> None:
    low, high = sorted(pair)
    fit = fitted(agreement(sorted(estimated), sorted(measured)[: len(estimated)]))
    assert fit is not None
    assert fit.kl(low) <= fit.kl(high) * (1 + 1e-9)


def test_one_layer_at_the_lowest_knot_does_not_decide_for_all_below_it() -> None:
    low = fitted(agreement([1e-3, 2e-3, 1e-2], [6e-4, 1.9e-3, 2e-2], ratio=1.02))
    assert low is not None
    assert low.kl(5e-4) == pytest.approx(1.02 * 5e-4)
    assert low.kl(1e-3) == pytest.approx(1.02e-3)
    assert low.kl(2e-3) == pytest.approx(1.9e-3)
    assert low.kl(2e-2) == pytest.approx(4e-2)
    high = fitted(agreement([1e-3, 2e-3], [1e-3, 1e-3], ratio=1.5))
    assert high is not None
    assert high.kl(1e-3) == high.kl(2e-3) == pytest.approx(1.5e-3)  # never falls


def test_a_sign_stays_and_nothing_stays_nothing() -> None:
    fit = fitted(agreement([1e-3, 1e-2], [2e-3, 3e-2]))
    assert fit is not None
    assert fit.kl(0.0) == 0.0
    assert fit.kl(-1e-3) == pytest.approx(-2e-3)


@pytest.mark.parametrize(
    "found",
    [
        None,
        agreement([1e-3, 1e-2], [2e-3, 3e-2], layers=LEAST_PAIRS - 1),
        agreement([], []),
        agreement([0.0, -1e-3], [1e-3, 1e-3]),
        agreement([1e-3], [math.nan]),
    ],
)
def test_too_few_pairs_or_none_to_take_a_logarithm_of_correct_nothing(
    found: p.Agreement | None,
) -> None:
    assert fitted(found) is None


def test_an_estimate_s_error_scales_and_its_nll_moves_by_what_its_kl_does() -> None:
    fit = fitted(agreement([1e-3, 1e-2], [2e-3, 2e-2]))
    guess = r.estimate("lm_head", 0)
    assert fit is not None
    found = corrected(guess, fit)
    assert found.kl == pytest.approx(2 * guess.kl)
    assert found.kl_se == pytest.approx(2 * guess.kl_se)
    assert found.dnll - guess.dnll == pytest.approx(guess.kl)
    bent = corrected(guess, fit, 0.25)
    assert bent.kl == found.kl
    assert bent.dnll == pytest.approx(guess.dnll - guess.kl + 0.25 * found.kl)
    assert corrected(guess, None) is guess
    assert corrected(guess, None, 0.25).dnll == pytest.approx(guess.dnll - 0.75 * guess.kl)
    restored = msgspec.structs.replace(guess, direction="restore")
    assert corrected(restored, fit, 0.25).dnll == guess.dnll


def test_a_prediction_rests_on_corrected_estimates_and_on_measurements_as_they_are() -> None:
    session = Session()
    layers = r.names()
    for event in (*r.opening(), r.estimated(["int3-g128"]), r.agreement(8, "int3-g128")):
        apply(session, event)
    apply(session, p.Learned(("s",), (r.sensitivity(layers[4], 4, "int3-g128"),)))
    apply(session, r.changed(session, layers[3:5], "int3-g128"))
    raw = r.estimate(layers[3], 3, "int3-g128").kl
    # Between the knots (1e-3, 1.1e-3) and (1e-2, 1.5e-2).
    power = math.log(1.5e-2 / 1.1e-3) / math.log(10)
    expected = 1.1e-3 * (raw / 1e-3) ** power
    assert 1e-3 < raw < 1e-2
    predicted = predict(session)
    assert predicted is not None
    assert predicted.kl == pytest.approx(expected + r.sensitivity(layers[4], 4, "int3-g128").kl)
    assert predicted.missing == 0


def test_an_estimate_of_a_fused_group_is_not_taken_for_its_first_layer_s() -> None:
    session = Session()
    for event in r.opening():
        apply(session, event)
    guess = msgspec.structs.replace(r.estimate(r.names()[1], 1), by="group")
    apply(session, p.Learned(("g",), (guess,)))
    assert session.estimate(1, r.EFFECTS) is None
    assert session.effects.estimated_units[guess.key] == {guess.layer: guess}
