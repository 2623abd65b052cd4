"""A worker's process: started, killed, stopped, and ended with its engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine import protocol as p
from engine.workers import connected
from engine.workers.local import LocalWorker
from engine.workers.worker import Patience, WorkerLostError

UNITS = p.MeasureUnits(format="int8", direction="degrade", by="layer", units=("a",), nll=1.0)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[LocalWorker]:
    """A worker that has failed to open a checkpoint, and so has imported no torch."""
    found = LocalWorker("1 on cpu", "cpu", threads=1)
    try:
        *_, last = found.run(p.Open(str(tmp_path / "nothing"), p.Settings()))
        assert isinstance(last, p.JobEnded)
        assert "nothing" in last.message
        yield found
    finally:
        found.close()


def test_a_killed_process_is_lost_and_so_it_is_said(worker: LocalWorker) -> None:
    *_, last = worker.run(UNITS)
    assert isinstance(last, p.Refused | p.JobEnded)  # and goes on after what failed
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="ended by SIGKILL"):
        list(worker.run(UNITS))


def test_a_process_that_does_not_get_on_is_lost(
    worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    monkeypatch.setattr(Patience, "LEAST", 0.2)
    monkeypatch.setattr(connected, "TICK", 0.05)
    with pytest.raises(WorkerLostError, match="no progress"):
        list(worker.run(UNITS))
    process = psutil.Process(worker.pid)
    worker.close()
    assert not process.is_running()


def test_a_wait_of_a_machine_that_slept_is_not_counted() -> None:
    patience = Patience()
    patience.wait(86_400.0, at_most=1.0)
    assert patience.waited == 2.0
    patience.progress()
    assert (patience.longest, patience.waited) == (2.0, 0.0)
    patience.waited = Patience.LEAST
    with pytest.raises(WorkerLostError, match="no progress"):
        patience.wait(1.0, at_most=1.0)


def test_a_long_step_lets_the_next_ones_take_longer() -> None:
    patience = Patience()
    for _ in range(100):
        patience.wait(1.0, at_most=1.0)
    patience.progress()
    assert patience.limit == 100 * Patience.FACTOR


def test_what_is_closed_is_not_started_any_more(tmp_path: Path) -> None:
    worker = LocalWorker("1 on cpu", "cpu")
    worker.close()
    with pytest.raises(WorkerLostError, match="it was ended"):
        list(worker.run(p.Open(str(tmp_path), p.Settings())))
    assert worker.pid is None
