"""What is measured after layers were estimated: all, none, or as much as makes the worst sure."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from scipy import stats

from engine import protocol as p
from engine.client import Client, in_process
from engine.measure.evaluation.reference import Reference
from tests import tiny
from tests.drive import ended, facts, figures, settings, sweeps, until
from tests.measure.sweep import guessed

WINDOWS, TARGETS = 40, 31


def many(prose: Path, **given: object) -> p.Settings:
    """40 windows of 32 tokens, in 10 micro-batches."""
    return settings(prose, tokens=WINDOWS * 32, **given)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small layers whose sizes differ, so that some are soon outside."""
    return tiny.build("llama", tmp_path_factory.mktemp("exactness") / "llama", num_hidden_layers=2)


class Counted:
    """Which candidates were measured on which micro-batch."""

    def __init__(self) -> None:
        self.times: Counter[tuple[str, int]] = Counter()

    def layers(self) -> list[str]:
        """In the order in which they were measured first."""
        return list(dict.fromkeys(name for name, _ in self.times))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counts = Counted()
    measure = Reference.measure

    def counting(self: Reference, batch: int, start: int, weights: dict[str, object]) -> object:
        for name in weights:
            counts.times[name, batch] += 1
        return measure(self, batch, start, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(Reference, "measure", counting)
    return counts


def job(events: list[p.AnyEvent]) -> p.JobEnded:
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    return last


def worst(rows: dict[str, p.Sensitivity], top: int) -> set[str]:
    return set(sorted(rows, key=lambda name: -rows[name].kl)[:top])


def test_the_worst_are_found_on_fewer_windows_and_finished_without_measuring_one_twice(
    source: Path, prose: Path, counted: Counted
) -> None:
    top, whole = sweeps(source, many(prose), p.Sweep(exact="top:3"), p.Sweep())
    rough, exact = figures(top), figures(whole)
    assert set(rough) == set(exact)
    assert all(row.tokens == WINDOWS * TARGETS for row in exact.values())
    fewer = {name for name, row in rough.items() if row.tokens < WINDOWS * TARGETS}
    assert len(fewer) > len(exact) / 2
    assert worst(exact, 3) <= worst(rough, 5)
    # The control swaps two layers for themselves, on the first micro-batch.
    twice = {each for each, times in counted.times.items() if times > 1 and each[1]}
    assert not twice
    for name, row in rough.items():
        assert row.kl == pytest.approx(exact[name].kl, rel=0.5)
    # A layer that was left on fewer windows is either known well, or smaller than the worst.
    least = min(rough[name].kl for name in worst(rough, 3))
    for name in fewer:
        seen = rough[name].tokens // TARGETS
        half = float(stats.t.ppf(0.975, seen - 1)) * rough[name].kl_se
        known_well = half <= 0.1 * rough[name].kl
        assert known_well or rough[name].kl < least


def test_a_figure_on_fewer_windows_answers_its_own_question_alone(
    source: Path, prose: Path
) -> None:
    (first,) = sweeps(source, many(prose), p.Sweep(exact="top:3"))
    # Other engines, with nothing but the store.
    (same,) = sweeps(source, many(prose), p.Sweep(exact="top:3"))
    assert job(same).measured == 0
    assert figures(same) == figures(first)
    (whole,) = sweeps(source, many(prose), p.Sweep())
    assert all(row.tokens == WINDOWS * TARGETS for row in figures(whole).values())
    complete = {n: row for n, row in figures(first).items() if row.tokens == WINDOWS * TARGETS}
    stored = [e for e in whole if isinstance(e, p.Learned) and not e.fresh]
    assert figures(stored) == complete


def test_figures_on_all_windows_answer_every_question_and_are_preferred(
    source: Path, prose: Path
) -> None:
    one, whole, again, three = sweeps(
        source,
        many(prose),
        p.Sweep(exact="top:1"),
        p.Sweep(),
        p.Sweep(exact="top:1"),
        p.Sweep(exact="top:3"),
    )
    assert figures(one) != figures(whole)
    assert figures(again) == figures(three) == figures(whole)
    assert job(again).measured == job(three).measured == 0
    # Windows that were added later give the very figures of measuring all at once.
    (at_once,) = sweeps(source, many(prose, fresh=True), p.Sweep())
    assert figures(at_once) == figures(whole)


def test_restoring_with_an_effort_measures_the_differences_on_fewer_windows(
    source: Path, prose: Path
) -> None:
    asked = (p.Sweep(exact="top:2", direction="restore"), p.Sweep(direction="restore"))
    top, whole = sweeps(source, many(prose), *asked)
    rough, exact = figures(top), figures(whole)
    assert set(rough) == set(exact)
    assert any(row.tokens < WINDOWS * TARGETS for row in rough.values())
    assert worst(exact, 2) <= worst(rough, 4)


def test_all_begins_with_the_worst_estimate(
    source: Path, prose: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = guessed.put(monkeypatch, lambda layer, _: float(len(layer)) + layer.count("1"))
    (events,) = sweeps(source, settings(prose), p.Sweep())
    rows = list(figures(events))
    assert rows == sorted(rows, key=lambda name: -guesses.kl(name, ""))
    assert sorted(rows, key=lambda name: -len(name)) != rows[::-1]


def test_windows_are_added_in_turn_the_worst_estimate_first(
    source: Path, prose: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = guessed.put(monkeypatch, lambda layer, _: float(len(layer)))
    (events,) = sweeps(source, many(prose), p.Sweep(exact="top:3"))
    progress = [e for e in events if isinstance(e, p.Progress) and e.phase == "measuring"]
    told = [e.subject for e in progress]
    layers = len(figures(events))
    first = told[:layers]
    assert first == sorted(first, key=lambda name: -guesses.kl(name, ""))
    assert len(set(first)) == layers
    # Every turn goes through those that are still undecided, in the same order.
    turns: list[list[str]] = [[]]
    for name in told:
        if name in turns[-1]:
            turns.append([])
        turns[-1].append(name)
    assert len(turns) > 2
    for before, after in itertools.pairwise(turns):
        assert [name for name in before if name in after] == after
    done = [e.done for e in progress]
    assert done == sorted(done)
    assert done[-1] <= layers


def test_none_measures_nothing_but_estimates(
    source: Path, prose: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = guessed.put(monkeypatch, lambda layer, _: 1.0)
    chosen = settings(prose, estimate_formats=("int8", "int4-g32"))
    first, second = sweeps(source, chosen, p.Sweep(exact="none"), p.Sweep(exact="none"))
    assert not facts(first, p.Sensitivity)
    assert not facts(first, p.Additivity)
    estimates = [f for f in facts(first, p.Estimate) if isinstance(f, p.Estimate)]
    assert {f.format for f in estimates} == {"int4-g32", "int8"}
    assert {batch for _, batch in counted.times} == {0}  # the control, and nothing else
    assert guesses.asked[0] == guesses.asked[1] == (("int8", "int4-g32"), "degrade")
    assert job(second).measured == 0


def test_to_restore_only_what_is_swept_is_estimated(
    source: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = guessed.put(monkeypatch, lambda layer, _: 1.0)
    chosen = settings(prose, estimate_formats=("int8", "int3-g32"))
    sweeps(source, chosen, p.Sweep(exact="none", direction="restore"))
    assert guesses.asked == [(("int4-g32",), "restore")]


def test_events_come_in_order_and_agreement_at_the_end_also_from_the_store(
    source: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed.put(monkeypatch, lambda layer, _: 1.0 / len(layer))
    asked = p.Sweep(("int4-g32", "int8"))
    first, second = sweeps(source, settings(prose), asked, asked)
    kinds: list[type] = []
    for event in first:
        if isinstance(event, p.Learned):
            kinds += [type(fact) for fact in event.facts]
    order = list(dict.fromkeys(kinds))
    assert order == [
        p.Baseline, p.Control, p.Estimate, p.Sensitivity, p.RecipeScore, p.Additivity,
    ]  # fmt: skip
    formats = [f.format for f in facts(first, p.Sensitivity) if isinstance(f, p.Sensitivity)]
    assert formats == sorted(formats, key=["int4-g32", "int8"].index)
    for events in (first, second):
        told = {e.format: e for e in events if isinstance(e, p.Agreement)}
        assert set(told) == {"int4-g32", "int8"}
        for agreement in told.values():
            assert agreement.layers == len(figures(first))
            assert -1 <= agreement.rank_kl <= 1
            assert agreement.ratio > 0
    assert job(second).measured == 0


def test_a_toggle_in_between_changes_no_figure_and_no_choice(source: Path, prose: Path) -> None:
    for asked in (p.Sweep(exact="top:2"), p.Sweep(exact="top:2", direction="restore")):
        (undisturbed,) = sweeps(source, many(prose, fresh=True), asked)
        client = in_process(str(source))
        try:
            client.send(p.Open(str(source), many(prose, fresh=True)))
            client.send(asked)
            events = until(client, lambda e: bool(facts([e], p.Sensitivity)))
            client.send(p.SetFormat(("model.layers.1.mlp.down_proj",), "int3-g32"))
            events += (evaluated := until(client, ended("evaluate")))
            assert not any(isinstance(e, p.JobEnded) and e.kind == "sweep" for e in evaluated)
            events += until(client, ended("sweep"))
        finally:
            client.close()
        assert figures(events) == figures(undisturbed)


def test_a_sweep_broken_off_keeps_what_was_decided_and_decides_the_rest(
    source: Path, prose: Path
) -> None:
    client = in_process(str(source))
    decided: dict[str, p.Sensitivity] = {}
    try:
        client.send(p.Open(str(source), many(prose)))
        client.send(p.Sweep(exact="top:3"))

        def few_left(event: p.AnyEvent) -> bool:
            for fact in facts([event], p.Sensitivity):
                assert isinstance(fact, p.Sensitivity)
                if fact.layer in first:
                    decided[fact.layer] = fact
                first.add(fact.layer)
            return len(decided) >= 5

        first: set[str] = set()
        until(client, few_left)
        break_off(client)
    finally:
        client.close()
    (events,) = sweeps(source, many(prose), p.Sweep(exact="top:3"))
    rows = figures(events)
    assert {name: rows[name] for name in decided} == decided
    assert len(rows) > len(decided)
    assert job(events).resumed >= 2 + len(decided)
    (whole,) = sweeps(source, many(prose), p.Sweep())
    assert worst(figures(whole), 3) <= worst(rows, 5)


def break_off(client: Client) -> None:
    """Cancel the sweep that runs."""
    (running,) = [j for j in client.session.jobs.values() if j.kind == "sweep"]
    client.send(p.Cancel(running.id))
    until(client, ended("sweep"))


@pytest.mark.parametrize("exact", ["top:0", "best", "top"])
def test_an_effort_that_says_nothing_is_refused_at_once(
    exact: str, source: Path, prose: Path
) -> None:
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose)))
        client.send(p.Sweep(exact=exact))
        refused = until(client, lambda e: isinstance(e, p.Refused))[-1]
    finally:
        client.close()
    assert isinstance(refused, p.Refused)
    assert "top:10" in refused.message
    assert refused.exit_code == 2


def test_sweeps_that_ask_something_else_may_wait_for_each_other(source: Path, prose: Path) -> None:
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), settings(prose)))
        for asked in (
            p.Sweep(), p.Sweep(direction="restore"), p.Sweep(by="block"), p.Sweep(exact="none"),
        ):  # fmt: skip
            client.send(asked)
        client.send(p.Sweep(by="block"))
        events = until(client, lambda e: isinstance(e, p.Refused))
        titles = [e.title for e in events if isinstance(e, p.JobStarted) and e.kind == "sweep"]
        assert titles == [
            "sweep int4-g32", "sweep int4-g32 restore", "sweep int4-g32 by block",
            "sweep int4-g32 none",
        ]  # fmt: skip
        for _ in titles:
            until(client, ended("sweep"))
        units = client.session.effects.units[p.EffectKey("degrade", "int4-g32", "block")]
        assert set(units) == {"0", "1"}
        assert all(math.isfinite(fact.kl) for fact in units.values())
    finally:
        client.close()
