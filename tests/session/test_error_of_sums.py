"""The error of a sum of effects, against sums whose errors are drawn: own, shared, corrected."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import protocol as p
from engine.measure.sweep.agreement import agreement
from engine.session import KnownEffects, Session, apply
from tests.qtui import replay as r

LAYERS = [f"model.layers.{block}.mlp.up_proj" for block in range(60)]
F = r.FORMAT
KEY = p.EffectKey("degrade", F)
DRAWS, MODEL, WINDOWS = 0.15, 0.2, 0.03
"""Relative errors: of an estimate's draws, of the quadratic model in a layer, of the windows."""


def facts(
    chance: np.random.Generator, measured: int
) -> tuple[float, list[p.Estimate], list[p.Sensitivity]]:
    """The true sum, estimates that are all off by one factor, and the worst layers measured."""
    true = np.exp(chance.normal(-7, 1.0, len(LAYERS)))
    factor = math.exp(chance.normal(0, 0.5))
    guess = true * factor * np.exp(chance.normal(0, math.hypot(DRAWS, MODEL), len(LAYERS)))
    found = true * (1 + chance.normal(0, WINDOWS))  # the windows are as hard for every layer
    estimates = [
        p.Estimate(layer=name, format=F, kl=kl, kl_se=DRAWS * kl, dnll=kl, dnll_se=kl, tokens=100)
        for name, kl in zip(LAYERS, guess.tolist(), strict=True)
    ]
    worst = np.argsort(-guess)[:measured].tolist()
    exact = [
        p.Sensitivity(
            layer=LAYERS[at], format=F, kl=float(found[at]), kl_se=WINDOWS * float(found[at]),
            dnll=0.0, dnll_se=0.0, dppl=0.0, dppl_low=0.0, dppl_high=0.0, tokens=100,
        )
        for at in worst
    ]  # fmt: skip
    return float(true.sum()), estimates, exact


def scores(measured: int, *, without_common: bool = False) -> NDArray[np.float64]:
    """Errors of sums over what is said of them, many times."""
    listed = list(r.opening(r.listed(LAYERS)))
    found = []
    for seed in range(120):
        true, estimates, exact = facts(np.random.default_rng(seed), measured)
        session = r.folded(*listed)
        known = (*estimates, *exact)
        apply(session, p.Learned(("",) * len(known), known))
        by_name = {each.layer: each for each in estimates}
        agreed = agreement(F, "degrade", by_name, {each.layer: each for each in exact})
        if agreed is not None:
            apply(session, agreed)
        effects = KnownEffects(session)
        column = [each for each in effects.column(F) if each is not None]
        total = math.fsum(kl for kl, _, _ in column)
        said = effects.error_of_sum(dict.fromkeys(LAYERS, F))
        if without_common:
            said = math.sqrt(math.fsum(se**2 for _, _, se in column))
        found.append((total - true) / said)
    return np.array(found)


@pytest.mark.parametrize("measured", [10, 30])
def test_errors_of_sums_of_corrected_estimates_are_of_the_size_that_is_said(measured: int) -> None:
    errors = scores(measured)
    # Measured are the largest estimates, which are too large more often than others: the sums are
    # too small by up to one standard error, which counts it, and scatter by another.
    assert -1.2 < errors.mean() < 0.2
    assert 0.8 < errors.std() < 1.25
    # With all errors taken as independent sums are off by several of them.
    apart = scores(measured, without_common=True)
    assert math.sqrt(float((apart**2).mean())) > 4


def test_errors_of_one_set_of_windows_add_up() -> None:
    errors = scores(len(LAYERS))
    assert 0.8 < math.sqrt(float((errors**2).mean())) < 1.2


def test_estimates_that_nothing_corrects_have_errors_of_their_own() -> None:
    session = r.folded(*r.opening(r.listed(LAYERS)))
    _, estimates, _ = facts(np.random.default_rng(0), 0)
    apply(session, p.Learned(("",) * len(estimates), tuple(estimates)))
    own = math.sqrt(math.fsum(each.kl_se**2 for each in estimates))
    effects = KnownEffects(session)
    assert effects.error_of_sum(dict.fromkeys(LAYERS, F)) == pytest.approx(own)
    assert effects.error_of_sum({}) == 0.0
    assert KnownEffects(Session()).error_of_sum({}) == 0.0
