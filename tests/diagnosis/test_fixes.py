"""Fixes of a layer: read from what is known, filled in, compared, judged."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine import protocol as p
from engine.diagnosis.findings import findings
from engine.diagnosis.fixes import LayerFix, best_fix, front, layer_fixes, verdict_of
from engine.session import Session, apply
from tests.diagnosis.test_findings import F, Q, changed, clean, without_channels
from tests.qtui import replay as r
from tests.qtui.panes import told


def tried(format: str, output: float, weight: float = 0.1, **given: object) -> p.FormatTried:
    fact = p.FormatTried(
        layer=Q, format=format, weight_error=weight, output_error=output, tokens=100
    )
    return msgspec.structs.replace(fact, **given)


def measured(format: str, kl: float) -> p.Sensitivity:
    return p.Sensitivity(
        layer=Q, format=format, kl=kl, kl_se=kl / 20, dnll=kl, dnll_se=kl, dppl=0.0, dppl_low=0.0,
        dppl_high=0.0, tokens=100,
    )  # fmt: skip


def learn(session: Session, *facts: p.AnyFact) -> Session:
    apply(session, p.Learned(("",) * len(facts), facts))
    return session


def fixes(session: Session) -> dict[str, LayerFix]:
    return {fix.format: fix for fix in layer_fixes(session, Q, F)}


def test_an_unknown_effect_goes_with_the_square_of_the_output_error() -> None:
    session = learn(clean(), tried(F, 0.10), tried("int4-g32", 0.06, weight=0.09))
    found = fixes(session)
    base = found[F]
    assert not base.filled
    fix = found["int4-g32"]
    assert fix.filled
    assert fix.kl_estimated == pytest.approx(base.kl_estimated * 0.6**2)
    assert fix.recovered == pytest.approx(1 - 0.36)
    bits = 4 + 20 / 32 - (4 + 20 / 128)
    weights = session.layers.shapes[session.index[Q]]
    size = bits * math.prod(weights) / 8
    assert fix.per_megabyte == pytest.approx(0.64 * base.kl_estimated / size * 1e6)


def test_the_nearest_output_error_fills_in() -> None:
    facts = (tried(F, 0.10), tried("int8", 0.01), tried("int8-g128", 0.012))
    session = learn(clean(), *facts, measured("int8", 1e-6))
    assert fixes(session)["int8-g128"].kl_estimated == pytest.approx(1e-6 * 1.2**2)


def test_measured_beats_estimated_and_what_is_refused_has_no_figure() -> None:
    session = learn(clean(), measured(F, 2e-3), measured("int6-g128", 1e-4))
    learn(session, tried("int4-g128+awq", math.nan, math.nan, refused="nothing absorbs the scale"))
    found = fixes(session)
    assert found[F].kl == 2e-3
    assert found["int6-g128"].recovered == pytest.approx(0.95)
    refused = found["int4-g128+awq"]
    assert math.isnan(refused.kl)
    assert refused.refused
    assert verdict_of(refused, F, None) == "not possible"
    assert refused not in front(list(found.values()))


def test_the_layer_as_stored_costs_nothing() -> None:
    stored = fixes(clean())[""]
    assert (stored.kl, stored.recovered, stored.kernels) == (0.0, 1.0, ("dense",))


def test_the_front_holds_what_nothing_betters_in_size_and_kl() -> None:
    session = learn(
        clean(), measured(F, 2e-3), measured("int8", 1e-5), measured("fp8-e4m3", 3e-5),
        measured("int6-g128", 1e-4), measured("int3-g128", 9e-3), measured("q4_k", 2.5e-3),
    )  # fmt: skip
    found = layer_fixes(session, Q, F)
    assert [fix.format for fix in front(found)] == [F, "int8", ""]  # those that some kernel takes
    served = best_fix(found, F, 0.5)
    assert served is not None
    assert served.format == "int8"
    session.settings = msgspec.structs.replace(session.settings, unserved=True)
    found = layer_fixes(session, Q, F)
    assert [fix.format for fix in front(found)] == ["int3-g128", F, "int6-g128", "int8", ""]
    worse = next(fix for fix in found if fix.format == "q4_k")
    assert worse.better == F
    assert math.isnan(worse.per_megabyte)
    best = best_fix(found, F, 0.5)
    assert best is not None
    assert best.format == "int6-g128"
    assert verdict_of(best, F, best) == "best: wins back 95%"
    three = next(fix for fix in found if fix.format == "int3-g128")
    assert verdict_of(three, F, best) == "costs 4.5 times as much"
    for recovered, times in ((-448.6, "450"), (-9.0, "10"), (-8.94, "9.9"), (-1999.0, "2,000")):
        worse = msgspec.structs.replace(three, recovered=recovered)
        assert verdict_of(worse, F, best) == f"costs {times} times as much"
    eight = next(fix for fix in found if fix.format == "fp8-e4m3")
    assert verdict_of(eight, F, best) == "int8 is better"


def test_the_best_fix_is_a_measured_one_where_there_is_one() -> None:
    session = learn(clean(), tried(F, 0.1), tried("int4-g128+gptq", 0.05), measured(F, 2e-3))
    by_estimate = best_fix(layer_fixes(session, Q, F), F, 0.5)
    assert by_estimate is not None
    assert by_estimate.format == "int4-g128+gptq"
    learn(session, measured("int4-g64", 6e-4))
    by_measure = best_fix(layer_fixes(session, Q, F), F, 0.5)
    assert by_measure is not None
    assert by_measure.format == "int4-g64"


def test_columns_that_stay_in_16_bits_are_counted() -> None:
    one = learn(clean(), tried("int8+outlier6+a8", 0.01))
    few = learn(clean(), tried("int8+outlier6+a8", 0.01, columns=3))
    out = one.layers.shapes[one.index[Q]][0]
    more = fixes(few)["int8+outlier6+a8"].bits - fixes(one)["int8+outlier6+a8"].bits
    assert more == 3 * (16 * out + 32)


def test_findings_name_the_best_fix_that_was_tried() -> None:
    session = without_channels(clean())
    changed(session, Q, worst_column=7, worst_column_sigma=15.0)
    learn(session, tried(F, 0.1), tried("int4-g128+gptq", 0.05))
    learn(session, measured(F, 1e-3), measured("int4-g128+gptq", 3e-4))
    (found,) = (each for each in findings(session, F) if each.id == "outlier-channel")
    assert found.fix is not None
    assert (found.fix.format, found.fix.measured) == ("int4-g128+gptq", True)
    assert found.fix.recovered == pytest.approx(0.7)


def test_a_restart_keeps_formats_tried_unless_calibration_changes() -> None:
    session = learn(clean(), tried(F, 0.1))
    same = p.Opened(source="x", settings=session.settings, versions={})
    apply(session, same)
    assert session.fixes[Q][F].output_error == 0.1
    other = msgspec.structs.replace(session.settings, calib_tokens=7)
    apply(session, p.Opened(source="x", settings=other, versions={}))
    assert session.fixes == {}


def test_all_outlier_channels_of_a_layer_are_named() -> None:
    session = without_channels(clean())
    changed(
        session, Q, worst_column=7, worst_column_sigma=15.0,
        large_columns=(7, 101, 3), large_columns_sigma=(15.0, 12.0, 8.0),
    )  # fmt: skip
    (found,) = (each for each in findings(session, F) if each.id == "outlier-channel")
    assert found.channels == (7, 101)
    assert "input channels 7, 101 reach up to 15.0σ" in found.sentence


def test_what_is_not_known_or_not_possible_wins_nothing_back() -> None:
    facts = (tried("nf4-g64", math.nan, math.nan), tried("q4_k", math.nan, refused="no inputs"))
    session = learn(told(Session(), *r.opening()), measured(F, 2e-3), *facts)
    for format in ("nf4-g64", "q4_k"):
        fix = fixes(session)[format]
        assert math.isnan(fix.kl), format
        assert math.isnan(fix.recovered), format
        assert math.isnan(fix.per_megabyte), format
    best = best_fix(list(fixes(session).values()), F, 0.5)
    assert best is not None
    assert best.format == ""  # as stored: nothing else is known to help
