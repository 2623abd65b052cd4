"""A sweep has the same figures whoever measures them, and whoever is lost meanwhile."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from engine import protocol as p
from engine.client import in_process
from engine.measure import sharing
from engine.workers.local import LocalWorker
from engine.workers.worker import Patience
from tests import tiny
from tests.drive import PATIENCE, facts, settings
from tests.workers.forks import ForkedWorker, PatientCrew

Swept = tuple[dict[str, p.AnyFact], list[p.AnyEvent]]
Meddle = Callable[[p.AnyEvent, list[LocalWorker]], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("shared") / "llama")


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LocalWorker]]:
    """The workers that were started; engine and workers compute with one thread each."""
    started: list[LocalWorker] = []

    def start(name: str, device: str, threads: int | None) -> LocalWorker:
        started.append(ForkedWorker(name, device, threads))
        return started[-1]

    monkeypatch.setattr(sharing, "LocalWorker", start)
    monkeypatch.setattr(sharing, "Crew", PatientCrew)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield started
    torch.set_num_threads(threads)


def swept(
    source: Path,
    chosen: p.Settings,
    ask: p.Sweep,
    workers: list[LocalWorker] | None = None,
    meddle: Meddle = lambda event, workers: None,
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
            meddle(event, workers or [])
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


def by_workers(events: list[p.AnyEvent]) -> int:
    """How many pieces workers have done, as was last told."""
    told = [event for event in events if isinstance(event, p.Workers)]
    return sum(worker.done for worker in told[-1].workers[1:])


ASKED = {
    "restore by block": p.Sweep(direction="restore", by="block"),
    "calibrated": p.Sweep(("int4-g32+awq",)),
}


@pytest.mark.parametrize("name", ASKED)
def test_figures_do_not_depend_on_who_measured_them(
    source: Path, prose: Path, workers: list[LocalWorker], name: str
) -> None:
    alone, _ = swept(source, small(prose), ASKED[name])
    assert not workers
    shared, events = swept(source, small(prose, workers="2"), ASKED[name], workers)
    assert len(workers) == 1
    assert by_workers(events) > 0
    assert shared == alone


def small(prose: Path, **given: object) -> p.Settings:
    """Four windows in two micro-batches."""
    of = {"tokens": 128, "batch_tokens": 64, "calib": str(prose), "calib_tokens": 128}
    return settings(prose, **{**of, **given})


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_loses_nothing(
    source: Path,
    prose: Path,
    workers: list[LocalWorker],
    end: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Patience, "LEAST", 3.0)
    left = [random.Random(end).randrange(1, 5)]

    def meddle(event: p.AnyEvent, workers: list[LocalWorker]) -> None:
        if isinstance(event, p.Learned) and any(
            isinstance(fact, p.Sensitivity) for fact in event.facts
        ):
            left[0] -= 1
            if left[0] == 0:
                pid = workers[0].pid
                assert pid is not None
                os.kill(pid, end)

    alone, _ = swept(source, small(prose), p.Sweep())
    shared, events = swept(source, small(prose, workers="3"), p.Sweep(), workers, meddle)
    assert shared == alone
    measured = facts(events, p.Sensitivity)
    assert len(measured) == len({fact.layer for fact in measured})  # type: ignore[union-attr]
