"""Memory that runs out at any allocation: the same figures in the end, or a sentence; never a
wrong figure, never a dead engine."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import protocol as p
from engine.client import InProcess, in_process
from engine.workspace import Loaded
from tests import tiny
from tests.drive import ended, settings, until
from tests.faults.allocations import ERRORS, Allocator, failing_allocator
from tests.faults.table import put

COMMANDS: dict[str, tuple[p.Command, str]] = {
    "sweep": (p.Sweep(("int4-g32",), exact="all"), "sweep"),
    "estimates": (p.Sweep(("int4-g32",), exact="none"), "sweep"),
    "restore": (p.Sweep(("int4-g32",), direction="restore"), "sweep"),
    "recipe": (p.Evaluate(format="int4-g32"), "evaluate"),
    "calibrated": (p.Evaluate(format="int4-g32+gptq"), "evaluate"),
    "activations": (p.Triage(("int4-g32",), activations=True), "triage"),
    "errors": (p.MeasureErrors(format="int4-g32"), "errors"),
}
"""Every job that runs the model, by what it does."""
EVERY = {"estimates": "a sweep of estimates", "sweep": "an exact sweep"}
"""Those of which every allocation fails in the long test; the last does the first too."""
SAMPLED = 2
"""Allocations of each job that fail in the short test, spread over all."""


class Running:
    """An engine with a tiny model, whose allocations can fail."""

    def __init__(self, source: Path, prose: Path, allocator: Allocator) -> None:
        self.client: InProcess = in_process(str(source))
        self.allocator = allocator
        chosen = settings(prose, tokens=128, fresh=True, calib=str(prose), calib_tokens=128)
        self.client.send(p.Open(str(source), chosen))
        until(self.client, ended("open"))

    @property
    def loaded(self) -> Loaded:
        found: Loaded = self.client._engine._workspace.need(Loaded)
        return found

    def afresh(self) -> None:
        """Forget all results, and what is cached."""
        self.client._engine._workspace.begun = time.time()
        self.loaded.take_back()

    def run(self, name: str) -> tuple[p.JobEnded, dict[str, Any], list[p.AnyEvent]]:
        """A job's end, its figures, and all events."""
        command, kind = COMMANDS[name]
        self.client.send(command)
        events = until(self.client, ended(kind))
        last = events[-1]
        assert isinstance(last, p.JobEnded)
        return last, figures(events), events


def figures(events: list[p.AnyEvent]) -> dict[str, Any]:
    """All facts by key, but for what was measured of time."""
    return {
        key: fact
        for event in events
        if isinstance(event, p.Learned)
        for key, fact in zip(event.keys, event.facts, strict=True)
    }


def warned(events: list[p.AnyEvent]) -> list[str]:
    """What was said of memory."""
    return [
        event.message
        for event in events
        if isinstance(event, p.Notice) and event.message.startswith("out of memory on cpu")
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tiny.build("llama", tmp_path_factory.mktemp("memory") / "model", num_hidden_layers=1)
    # An engine that is short of memory collects garbage, thousands of times here; most of what it
    # looks through are the modules that were imported just now.
    gc.freeze()
    return found


@pytest.fixture
def running(source: Path, prose: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with failing_allocator(monkeypatch) as allocator:
        found = Running(source, prose, allocator)
        try:
            yield found
        finally:
            allocator.fail(0, forever=False)
            found.client.close()


def undisturbed(running: Running, name: str) -> tuple[dict[str, Any], int]:
    """The figures of a job, and how many allocations it takes."""
    running.afresh()
    running.allocator.fail(0, forever=False)
    end, expected, _ = running.run(name)
    assert end.status == "done", end.message
    assert expected
    return expected, running.allocator.count


def check(running: Running, name: str, at: int, expected: dict[str, Any], *, forever: bool) -> None:
    """One job whose allocation fails; then once more with all memory, if it did not end well."""
    running.afresh()
    running.allocator.fail(at, forever=forever, error=list(ERRORS)[at % len(ERRORS)])
    end, found, events = running.run(name)
    failed = running.allocator.failed
    running.allocator.fail(0, forever=False)
    assert failed
    if forever and end.status == "failed":
        assert end.exit_code == 4
        assert "out of memory on cpu, where" in end.message
        assert "GiB are free" in end.message
        end, again, _ = running.run(name)
        found |= again
    elif forever:  # nothing but the last allocations failed, after all was saved
        assert found == expected
    else:
        (sentence,) = warned(events)
        assert "dropped" in sentence
    assert end.status == "done", end.message
    assert found == expected
    running.loaded.assert_at_rest()


def sampled(running: Running, name: str) -> int:
    """Let some allocations of a job fail, one in each run; how many."""
    expected, count = undisturbed(running, name)
    some = range(1, count + 1, max(1, count // SAMPLED))
    for at in some:
        check(running, name, at, expected, forever=False)
    return len(some)


def for_ever(running: Running, name: str) -> int:
    """Let an allocation of a job fail, and all after it; how many were tried."""
    expected, count = undisturbed(running, name)
    check(running, name, count // 2, expected, forever=True)
    return 1


FOR_EVER = ("sweep", "calibrated")


@pytest.mark.parametrize("name", COMMANDS)
def test_any_allocation_may_fail_once(name: str, running: Running) -> None:
    assert sampled(running, name) >= SAMPLED


@pytest.mark.parametrize("name", FOR_EVER)
def test_memory_that_runs_out_for_ever_ends_the_job_alone(name: str, running: Running) -> None:
    assert for_ever(running, name)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_how_many_allocations_fail_in_the_short_tests(running: Running) -> None:
    tried = sum(sampled(running, name) for name in COMMANDS)
    tried += sum(for_ever(running, name) for name in FOR_EVER)
    put("an allocation fails", f"{tried} in {len(COMMANDS)} jobs: 0", short=True)


def test_smaller_micro_batches_measure_the_same_up_to_rounding(running: Running) -> None:
    """Reference and candidates are run again at the new size, so that no figure mixes two."""
    expected, _ = undisturbed(running, "sweep")
    running.afresh()
    for _ in range(3):
        assert running.loaded.give_way()
    assert running.loaded.batch_tokens == 32
    end, found, _ = running.run("sweep")
    assert end.status == "done"
    assert found.keys() == expected.keys()
    for key, fact in found.items():
        if isinstance(fact, p.Sensitivity):
            assert fact.kl == pytest.approx(expected[key].kl, rel=1e-4, abs=1e-9)
            assert fact.tokens == expected[key].tokens


def test_a_waiting_job_begins_again_with_the_one_that_ran_out(running: Running) -> None:
    """A sweep that rests while a recipe runs out of memory holds what is about to be made anew."""
    expected, count = undisturbed(running, "sweep")
    running.afresh()
    running.allocator.fail(count // 2, forever=False)
    running.client.send(COMMANDS["sweep"][0])
    until(running.client, lambda event: isinstance(event, p.Progress) and event.done > 1)
    running.client.send(p.Evaluate(format="int8"))
    events = until(running.client, ended("sweep"))
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    assert last.status == "done"
    running.allocator.fail(0, forever=False)
    _, again, _ = running.run("sweep")
    assert {k: again[k] for k in expected if isinstance(expected[k], p.Sensitivity)} == {
        k: fact for k, fact in expected.items() if isinstance(fact, p.Sensitivity)
    }


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", EVERY)
def test_every_allocation_of_a_sweep_fails(name: str, running: Running) -> None:
    expected, count = undisturbed(running, name)
    for forever in (False, True):
        for at in range(1, count + 1):
            check(running, name, at, expected, forever=forever)
    put("an allocation fails", f"all {count:,} of {EVERY[name]}: 0")
