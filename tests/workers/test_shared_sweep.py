"""A sweep has the same figures whoever measures them, and whoever is lost meanwhile."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import torch

from engine import protocol as p
from engine.client import in_process
from engine.measure import sharing
from engine.workers.worker import Patience
from tests import tiny
from tests.drive import PATIENCE, facts, settings
from tests.workers.forks import Doom, ForkedWorker, PatientCrew

Swept = tuple[dict[str, p.AnyFact], list[p.AnyEvent]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("shared") / "llama")


@dataclass
class Started:
    """The workers that were started, and what awaits them."""

    workers: list[ForkedWorker] = field(default_factory=list)
    dooms: list[Doom] = field(default_factory=list)

    def start(self, name: str, device: str, threads: int | None) -> ForkedWorker:
        self.workers.append(ForkedWorker(name, device, threads))
        self.workers[-1].dooms = self.dooms
        return self.workers[-1]


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Engine and workers compute with one thread each."""
    found = Started()
    monkeypatch.setattr(sharing, "LocalWorker", found.start)
    monkeypatch.setattr(sharing, "Crew", PatientCrew)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield found
    torch.set_num_threads(threads)


def swept(
    source: Path,
    chosen: p.Settings,
    ask: p.Sweep,
) -> Swept:
    """Facts by key, and events, of a sweep by an engine that knew nothing."""
    client = in_process(str(source))
    found: dict[str, p.AnyFact] = {}
    events: list[p.AnyEvent] = []
    try:
        client.send(p.Open(str(source), msgspec.structs.replace(chosen, fresh=True)))
        client.send(ask)
        while not events or not _ended(events[-1]):
            event = client.receive(PATIENCE)
            assert event is not None
            events.append(event)
            if isinstance(event, p.Learned):
                for key, fact in zip(event.keys, event.facts, strict=True):
                    assert found.setdefault(key, fact) == fact
    finally:
        client.close()
    last = events[-1]
    assert isinstance(last, p.JobEnded)
    assert last.status == "done", last.message
    return found, events


def _ended(event: p.AnyEvent) -> bool:
    return isinstance(event, p.JobEnded) and event.kind == "sweep"


def parts(worker: ForkedWorker) -> set[type]:
    """What a worker was told to do."""
    return {type(command) for command in worker.commands}


ASKED = {
    "restore by block": p.Sweep(direction="restore", by="block"),
    "calibrated": p.Sweep(("int4-g32+awq",)),
}


@pytest.mark.parametrize("name", ASKED)
def test_figures_do_not_depend_on_who_measured_them(
    source: Path, prose: Path, started: Started, name: str
) -> None:
    alone, said = swept(source, small(prose), ASKED[name])
    assert not started.workers
    shared, heard = swept(source, small(prose, workers="2"), ASKED[name])
    (worker,) = started.workers
    assert parts(worker) == {p.Open, p.SumWindows, p.MeasureUnits}
    assert shared == alone
    assert calibrated(heard) == calibrated(said)
    assert bool(calibrated(said)) == (name == "calibrated")


def calibrated(events: list[p.AnyEvent]) -> list[p.Calibrated]:
    return [event for event in events if isinstance(event, p.Calibrated)]


def small(prose: Path, **given: object) -> p.Settings:
    """Four windows in two micro-batches."""
    of = {"tokens": 128, "batch_tokens": 64, "calib": str(prose), "calib_tokens": 128}
    return settings(prose, **{**of, **given})


@pytest.mark.parametrize(
    ("during", "end"),
    [
        (p.SumWindows, signal.SIGKILL),
        (p.MeasureUnits, signal.SIGKILL),
        (p.MeasureUnits, signal.SIGSTOP),
    ],
)
def test_a_worker_that_dies_or_hangs_loses_nothing(
    source: Path,
    prose: Path,
    started: Started,
    during: type[p.Command],
    end: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def impatient() -> None:  # only now: until then a busy machine may take its time
        monkeypatch.setattr(Patience, "LEAST", 0.5)
        monkeypatch.setattr(Patience, "FACTOR", 1.0)

    alone, _ = swept(source, small(prose), p.Sweep())
    after = random.Random().randrange(2)
    started.dooms.append(Doom(during, after, end, impatient))
    shared, events = swept(source, small(prose, workers="3"), p.Sweep())
    assert not started.dooms
    assert shared == alone, f"ended after {after}"
    if after == 0:  # else it may have had nothing more to do
        said = [event.message for event in events if isinstance(event, p.Notice)]
        assert any("the others go on without it" in each for each in said), said
    measured = [fact for fact in facts(events, p.Sensitivity) if isinstance(fact, p.Sensitivity)]
    assert len(measured) == len({fact.layer for fact in measured})


def test_none_are_started_where_every_figure_is_known(
    source: Path, prose: Path, started: Started
) -> None:
    chosen = small(prose, workers="2")
    client = in_process(str(source))
    try:
        client.send(p.Open(str(source), chosen))
        counts = []
        for ask in (p.Sweep(), p.Sweep(exact="top:2"), p.Sweep(("int8",), only=True)):
            client.send(ask)
            while not _ended(event := client.receive(PATIENCE)):
                assert event is not None
            assert event.status == "done"
            counts.append((len(started.workers), event.measured > 0))
    finally:
        client.close()
    assert counts == [(1, True), (1, False), (2, True)]
