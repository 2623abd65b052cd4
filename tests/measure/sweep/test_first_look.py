"""The first look of a sweep: a ranking from the first windows, which later estimates replace."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.measure.estimate import first_look
from engine.measure.sweep.sweep import sweep
from engine.session import Session, apply
from engine.store.facts import FactStore
from tests import tiny
from tests.drive import load, settings, sweeps

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


def test_it_serves_a_sweep_that_goes_on_until_all_windows_are_there(
    source: Path, prose: Path, tmp_path: Path
) -> None:
    """As after an engine that ended in the middle: what is known of the others is not lost."""
    chosen = msgspec.structs.replace(many(prose), fresh=False)
    store = FactStore(tmp_path / "facts")
    loaded = load(source, store, chosen)

    def told(whole: int) -> list[p.Estimate]:
        """What a sweep announces until so many layers have an estimate of all windows."""
        found: list[p.Estimate] = []
        steps = sweep(loaded, ["int4-g32"], "degrade", "j", exact="none")
        while sum("so far" not in fact.doubt for fact in found) < whole:
            if isinstance(event := next(steps), p.Learned):
                found += [fact for fact in event.facts if isinstance(fact, p.Estimate)]
                if event.fresh:
                    store.put(event.keys, event.facts)
        steps.close()
        return found

    first = told(1)
    looked = {fact.layer: fact for fact in first if "so far" in fact.doubt}
    there = {fact.layer for fact in first if "so far" not in fact.doubt}
    assert len(looked) > len(there)
    again = told(len(there))
    assert {fact.layer: fact for fact in again if "so far" in fact.doubt} == {
        layer: fact for layer, fact in looked.items() if layer not in there
    }
