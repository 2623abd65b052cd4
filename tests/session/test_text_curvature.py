"""ΔNLL of a layer beside its slope is a share of its KL, the same in every format."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine import protocol as p
from engine.measure.sweep.agreement import agreement
from engine.session import KnownEffects, Session, TextCurvature, apply, expected
from tests.qtui import replay as r

FORMATS = ("int4-g128", "int8")
SHARES = {"lm_head": 1.0, "model.embed_tokens": 0.3}
"""Of the others it is .6."""


def facts(measured: list[str]) -> tuple[list[p.Estimate], list[p.Sensitivity]]:
    """Effects whose ΔNLL is slope and share exactly: every estimate, and some measurements."""
    random = np.random.default_rng(3)
    estimates: list[p.Estimate] = []
    exact: list[p.Sensitivity] = []
    for format in FORMATS:
        for layer in r.names():
            kl, slope = float(random.uniform(1e-4, 1e-2)), float(random.normal(0, 3e-3))
            estimates.append(
                p.Estimate(
                    layer=layer, format=format, kl=kl, kl_se=kl / 9, dnll=slope + kl,
                    dnll_se=1e-3, tokens=100,
                )
            )  # fmt: skip
            if layer in measured and format == FORMATS[0]:
                dnll = slope + SHARES.get(layer, 0.6) * kl
                exact.append(
                    p.Sensitivity(
                        layer=layer, format=format, kl=kl, kl_se=kl / 20, dnll=dnll,
                        dnll_se=1e-4, dppl=0.0, dppl_low=0.0, dppl_high=0.0, tokens=100,
                    )
                )  # fmt: skip
    return estimates, exact


def known(measured: list[str]) -> tuple[Session, p.Agreement | None]:
    """A session with them, and with how well they agree, as a sweep says it."""
    estimates, exact = facts(measured)
    every = [*estimates, *exact]
    session = r.folded(*r.opening(), p.Learned(("",) * len(every), tuple(every)))
    of_format = {each.layer: each for each in estimates if each.format == FORMATS[0]}
    found = agreement(FORMATS[0], "degrade", of_format, {each.layer: each for each in exact})
    if found is not None:
        apply(session, found)
    return session, found


def dnll(session: Session, layer: str, format: str) -> float:
    """ΔNLL to expect, which all ways of asking agree upon."""
    row, key = session.index[layer], p.EffectKey("degrade", format)
    effects = KnownEffects(session)
    known, column, guess = effects.known(layer, format), effects.column(format), None
    if session.sensitivity(row, key) is None:
        guess = expected(session, row, key)
    assert known is not None
    assert (at := column[row]) is not None
    assert at[1] == pytest.approx(known.dnll)
    assert guess is None or guess.dnll == pytest.approx(known.dnll)
    return known.dnll


def test_a_measured_format_tells_the_share_of_the_layer_s_other_formats() -> None:
    session, found = known(["model.embed_tokens", "model.layers.1.mlp.up_proj"])
    assert found is None  # too few to say anything of other layers
    for layer, share in {**SHARES, "model.layers.1.mlp.up_proj": 0.6}.items():
        guess = session.estimate(session.index[layer], p.EffectKey("degrade", "int8"))
        assert guess is not None
        slope = guess.dnll - guess.kl
        assert dnll(session, layer, "int8") == pytest.approx(slope + share * guess.kl, rel=1e-2)
    other = session.index["model.layers.2.mlp.up_proj"]
    assert TextCurvature(session).of(other) == 1.0


def test_the_median_of_measured_layers_holds_for_the_others_but_not_for_the_head() -> None:
    measured = [layer for layer in r.names() if ".2." not in layer and layer != "lm_head"]
    session, found = known(measured)
    assert found is not None
    assert found.curvature == pytest.approx(0.6)
    for format in FORMATS:
        layer = "model.layers.2.mlp.up_proj"
        guess = session.estimate(session.index[layer], p.EffectKey("degrade", format))
        assert guess is not None
        wanted = guess.dnll - 0.4 * guess.kl
        assert dnll(session, layer, format) == pytest.approx(wanted, rel=1e-6)
    assert TextCurvature(session).of(session.index["lm_head"]) == 1.0


def test_what_rounding_alone_may_cause_tells_little() -> None:
    session, _ = known([layer for layer in r.names() if ".2." not in layer])
    layer, key = "model.layers.2.mlp.up_proj", p.EffectKey("degrade", FORMATS[0])
    guess = session.estimate(session.index[layer], key)
    assert guess is not None
    tiny = p.Sensitivity(
        layer=layer, format=FORMATS[0], kl=1e-9, kl_se=0.0, dnll=guess.dnll - guess.kl - 1e-7,
        dnll_se=0.0, dppl=0.0, dppl_low=0.0, dppl_high=0.0, tokens=100,
    )  # fmt: skip
    apply(session, p.Learned(("tiny",), (tiny,)))
    assert TextCurvature(session).of(session.index[layer]) == pytest.approx(0.5, abs=0.01)


def test_restored_layers_have_no_such_share() -> None:
    session, _ = known(r.names())
    key = p.EffectKey("restore", "int8")
    of_restore = msgspec.structs.replace(facts([])[0][-1], direction="restore")
    apply(session, p.Learned(("restore",), (of_restore,)))
    assert expected(session, session.index[of_restore.layer], key) == of_restore
