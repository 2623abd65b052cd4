"""Findings: what is planted is found with its cause, and a clean model has none."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from engine import protocol as p
from engine.diagnosis import findings as every
from engine.diagnosis.finding import Finding
from engine.formats.grammar import parse_format
from engine.session import Session
from tests.qtui import replay as r

F = "int4-g128"
FORMATS = ("int3-g128", F, "int6-g128", "int8")
Q = "model.layers.2.self_attn.q_proj"


def clean(seed: int = 0, **worse: float) -> Session:
    """Every layer's effect as in a clean model; ``worse`` multiplies those of some layers."""
    random = np.random.default_rng(seed)
    facts: list[p.AnyFact] = []
    names = r.names()
    for name in names:
        outside = ".layers." not in name
        base = 0.5e-3 * math.exp(random.normal(0, 0.4)) * (2.0 if outside else 1.0)
        for part, times in worse.items():
            base *= times if part.replace("__", ".") in name else 1.0
        for format in FORMATS:
            kl = base * 4.0 ** (4 - parse_format(format).bits)
            facts.append(
                p.Estimate(
                    layer=name, format=format, kl=kl, kl_se=kl / 10, dnll=kl, dnll_se=kl / 10,
                    tokens=100,
                )
            )  # fmt: skip
    return r.folded(*r.opening(), *r.triaged(), p.Learned(("",) * len(facts), tuple(facts)))


def changed(session: Session, layer: str, **given: object) -> None:
    """Other statistics of one layer's weights."""
    row = session.index[layer]
    known = session.layers.weights[row]
    assert known is not None
    session.layers.weights[row] = msgspec.structs.replace(known, **given)


def without_channels(session: Session) -> Session:
    """No outlier channel among the weights of the replayed triage."""
    for name in session.layers.names:
        changed(session, name, worst_column_sigma=5.0, nan=0, inf=0, zero_rows=0, dead_columns=0)
    return session


def findings(session: Session, format: str) -> list[Finding]:
    """Those that a clean model does not have."""
    return [each for each in every.findings(session, format) if each.severity != "info"]


def ids(found: list[Finding]) -> set[tuple[str, str]]:
    return {(each.id, each.layer) for each in found}


def test_a_clean_model_has_no_finding_in_a_hundred_draws() -> None:
    alarms = [findings(without_channels(clean(seed)), F) for seed in range(100)]
    assert sum(map(bool, alarms)) < 2


@pytest.mark.parametrize(
    ("given", "id", "severity", "says"),
    [
        ({"nan": 3}, "not-finite", "alert", "3 NaN and 0 Inf"),
        ({"zero_rows": 1, "dead_columns": 2}, "dead-rows", "note", "1 output row and 2 input chan"),
        (
            {"worst_column": 101, "worst_column_sigma": 23.0, "waste": 0.71},
            "outlier-channel",
            "warning",
            "channel 101 reaches 23.0σ; outliers waste 71%",
        ),
    ],
)
def test_what_weights_show_is_found_in_its_layer_alone(
    given: dict[str, object], id: str, severity: str, says: str
) -> None:
    session = without_channels(clean())
    changed(session, Q, **given)
    (found,) = findings(session, F)
    assert (found.id, found.layer, found.severity) == (id, Q, severity)
    assert says in found.sentence


def test_a_fix_is_the_smallest_format_that_wins_half_of_it_back() -> None:
    session = without_channels(clean())
    changed(session, Q, worst_column=7, worst_column_sigma=15.0)
    (found,) = findings(session, F)
    assert found.fix is not None
    assert found.fix.format == "int8"  # no kernel takes int6
    session.settings = msgspec.structs.replace(session.settings, unserved=True)
    (found,) = findings(session, F)
    assert found.channels == (7,)
    assert found.fix is not None
    assert found.fix.format == "int6-g128"
    assert found.fix.recovered == pytest.approx(1 - 1 / 16)
    assert found.fix.bits == pytest.approx(2 + 2 / 128)
    assert not found.fix.measured


@pytest.mark.parametrize(
    ("worse", "expected"),
    [
        ({"lm_head": 20.0}, {("fragile-head", "lm_head")}),
        ({"embed_tokens": 20.0}, {("fragile-embedding", "model.embed_tokens")}),
        (
            {"layers__2__self_attn__q_proj": 60.0},
            {("fragile-layer", Q)},
        ),
        ({"layers__0__": 10.0}, {("first-block", "")}),
        ({"layers__4__": 10.0}, {("last-block", "")}),
    ],
)
def test_what_effects_show_is_found_with_its_cause(
    worse: dict[str, float], expected: set[tuple[str, str]]
) -> None:
    assert ids(findings(without_channels(clean(**worse)), F)) == expected


def test_effects_that_are_not_all_known_are_not_judged() -> None:
    session = without_channels(clean(lm_head=20.0, layers__0__=10.0))
    session.effects.estimated[p.EffectKey("degrade", F)][4] = None
    # The layer's own other formats would fill it in: it is still not known.
    assert findings(session, F) == []
    assert findings(Session(), F) == []


def test_the_most_severe_comes_first() -> None:
    session = without_channels(clean(lm_head=20.0))
    changed(session, Q, zero_rows=1)
    changed(session, "lm_head", nan=1)
    assert [each.severity for each in findings(session, F)] == ["alert", "warning", "note"]
