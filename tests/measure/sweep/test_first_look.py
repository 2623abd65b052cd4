"""The first look of a sweep: a ranking from the first windows, which later estimates replace."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine import protocol as p
from engine.measure.estimate import first_look
from engine.session import Session, apply
from tests import tiny
from tests.drive import settings, sweeps

ESTIMATED = ("int4-g32", "int8", "int3-g32")


def estimates(events: list[p.AnyEvent]) -> list[p.Estimate]:
    return [
        fact
        for event in events
        if isinstance(event, p.Learned)
        for fact in event.facts
        if isinstance(fact, p.Estimate)
    ]


def many(prose: Path, **given: object) -> p.Settings:
    """32 windows of 32 tokens in micro-batches of 4."""
    return settings(prose, tokens=1024, estimate_formats=ESTIMATED, fresh=True, **given)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("look") / "llama")


def test_layers_are_ranked_before_the_reference_has_run(source: Path, prose: Path) -> None:
    (events,) = sweeps(source, many(prose), p.Sweep(exact="none"))
    begun = next(i for i, event in enumerate(events) if isinstance(event, p.JobStarted))
    measured = next(
        i
        for i, event in enumerate(events)
        if isinstance(event, p.Learned) and any(isinstance(f, p.Baseline) for f in event.facts)
    )
    first, later = estimates(events[begun:measured]), estimates(events[measured:])
    assert {fact.format for fact in first} == {"int4-g32"}
    assert {fact.tokens for fact in first} == {4 * 31}
    assert all(fact.doubt for fact in first)
    whole = {fact.layer: fact for fact in later if fact.format == "int4-g32"}
    assert {fact.layer for fact in first} == set(whole)
    assert {fact.tokens for fact in later} == {32 * 31}
    assert not any("so far" in fact.doubt for fact in later)
    errors = [(fact.kl_se, whole[fact.layer].kl_se) for fact in first]
    assert sum(before for before, _ in errors) > 1.2 * sum(after for _, after in errors)
    apart = [abs(fact.kl - whole[fact.layer].kl) for fact in first]
    near = [gap < 3 * math.hypot(*both) for gap, both in zip(apart, errors, strict=True)]
    assert sum(near) >= 0.8 * len(near)

    session = Session()
    for event in events:
        apply(session, event)
    key = p.EffectKey("degrade", "int4-g32")
    shown = [session.estimate(row, key) for row in range(len(session.layers.names))]
    assert {fact.layer: fact for fact in shown if fact} == whole


def test_it_changes_no_other_figure(
    source: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (looked,) = sweeps(source, many(prose), p.Sweep(exact="none"))
    monkeypatch.setattr(first_look, "LEAST", 99)
    (without,) = sweeps(source, many(prose), p.Sweep(exact="none"))
    assert estimates(without)
    assert [fact for fact in estimates(looked) if "so far" not in fact.doubt] == estimates(without)


def test_there_is_none_where_estimates_are_known(source: Path, prose: Path) -> None:
    asked = p.Sweep(exact="none")
    first, again = sweeps(source, many(prose), asked, asked)
    assert any("so far" in fact.doubt for fact in estimates(first))
    assert not any("so far" in fact.doubt for fact in estimates(again))
