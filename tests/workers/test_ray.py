"""Workers on other hosts: real clusters of Ray with several nodes on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine import protocol as p
from engine.measure import sharing
from engine.workers import cluster as cluster_module
from engine.workers import connected
from engine.workers.cluster import Cluster, HostedWorker
from engine.workers.worker import Patience, WorkerLostError
from tests import forked, tiny
from tests.drive import settings
from tests.faults.test_kill import figures, known
from tests.workers.clusters import Hosts, actors, ended, hosts, on_first_node
from tests.workers.forks import PatientCrew
from tests.workers.test_shared_sweep import swept

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="workers on other hosts need Ray: pip install -c constraints.txt ray",
)
UNITS = p.MeasureUnits(format="int8", direction="degrade", by="layer", units=("a",), nll=1.0)


@pytest.fixture(scope="module")
def ray_hosts() -> Iterator[Hosts]:
    with hosts() as found:
        yield found


def another_version(folder: Path) -> dict[str, str]:
    """Environment in which another version of qtui seems to be installed."""
    found = folder / "other" / "qtui-99.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: qtui\nVersion: 99\n")
    path = filter(None, [str(found.parent), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": os.pathsep.join(path)}


def started(worker: HostedWorker, folder: Path) -> int:
    """The process of a worker that has failed to open a checkpoint, so that it has no torch."""
    before = actors()
    *_, last = worker.run(p.Open(str(folder / "nothing"), p.Settings()))
    assert isinstance(last, p.JobEnded)
    assert "nothing" in last.message
    (pid,) = actors() - before
    return pid


def _open_and_wait(address: str, folder: str) -> None:
    """Be an engine with a worker."""
    worker = on_first_node(Cluster(address), 1)
    started(worker, Path(folder))
    (Path(folder) / "opened").touch()
    signal.pause()
    worker.close()


def test_workers_that_are_lost_are_lost_with_a_reason(
    ray_hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, hung and closed, its engine killed, its host gone; one that never started."""
    node = ray_hosts.add(processors=4, environment=another_version(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", ray_hosts.address)
    cluster = Cluster("auto")
    try:
        assert [(each.processors, each.gpus) for each in cluster.nodes] == [(4, 0)]
        killed, hung, left, cut = (on_first_node(cluster, number) for number in range(1, 5))

        pid = started(killed, tmp_path)
        *_, last = killed.run(UNITS)  # it goes on after what failed
        assert isinstance(last, p.Refused | p.JobEnded)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="its process ended: Worker unexpectedly exits"):
            list(killed.run(UNITS))

        pid = started(hung, tmp_path)
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr(Patience, "LEAST", 0.2)
            impatient.setattr(connected, "TICK", 0.05)
            with pytest.raises(WorkerLostError, match="no progress"):
                list(hung.run(UNITS))
        hung.close()
        assert ended(pid), "it is still there"

        before, said = actors(), tmp_path / "said"
        engine = forked.process(_open_and_wait, ray_hosts.address, str(tmp_path), said=said)
        while engine.is_alive() and not (tmp_path / "opened").exists():
            engine.join(0.01)
        assert engine.is_alive(), said.read_text()
        (pid,) = actors() - before
        connections = psutil.Process(engine.pid).children()
        engine.kill()
        assert ended(pid), "a worker outlives its engine"
        assert all(ended(each.pid) for each in connections)

        opening = left.run(p.Open("demo", p.Settings()))
        told = next(event for event in opening if isinstance(event, p.Opened))
        assert told.versions["qtui"] == "99"
        ray_hosts.remove(node)
        with pytest.raises(WorkerLostError, match="its host has left the cluster"):
            list(opening)
        with pytest.raises(WorkerLostError, match="its host has left the cluster"):
            list(cut.run(UNITS))
    finally:
        cluster.close()


class Told(HostedWorker):
    """A worker whose commands are noted, and that is killed once it has measured something."""

    commands: list[type[p.Command]] = []  # noqa: RUF012
    node: Any = None
    """Whose workers are killed."""

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        self.commands.append(type(command))
        for event in super().run(command):
            yield event
            if isinstance(event, p.Learned):
                for pid in actors(self.node):
                    os.kill(pid, signal.SIGKILL)


def test_figures_are_equal_whoever_measured_them_and_whoever_was_lost(
    ray_hosts: Hosts, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "Crew", PatientCrew)
    monkeypatch.setattr(cluster_module, "HostedWorker", Told)
    monkeypatch.setattr(Told, "commands", [])
    monkeypatch.setattr(Told, "node", ray_hosts.add())
    other = ray_hosts.add(environment=another_version(tmp_path))
    source, asked = tiny.build("llama", tmp_path / "llama"), p.Sweep()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, _ = swept(source, settings(prose), asked)
        shared, events = swept(source, settings(prose, workers=f"ray://{ray_hosts.address}"), asked)
    finally:
        torch.set_num_threads(threads)
        ray_hosts.remove(Told.node)
        ray_hosts.remove(other)
    assert {p.Open, p.SumWindows, p.MeasureUnits} <= set(Told.commands)
    assert shared == alone
    said = [event.message for event in events if isinstance(event, p.Notice)]
    assert any("it has qtui 99 instead of" in each for each in said), said
    assert any("its process ended" in each for each in said), said
    measured = [
        fact.layer
        for event in events
        if isinstance(event, p.Learned)
        for fact in event.facts
        if isinstance(fact, p.Sensitivity)
    ]
    assert len(measured) == len(set(measured))
    assert not actors()


@pytest.mark.soak
def test_a_command_that_is_killed_goes_on_where_it_was(
    ray_hosts: Hosts, tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = tiny.build("llama", tmp_path / "model", num_hidden_layers=12)
    asked = ("--tokens", "4096", "--seq-len", "64", "--text", str(prose), "--formats", "int4-g32")
    command = ("sweep", str(source), *asked, "--workers", f"ray://{ray_hosts.address}")
    node = ray_hosts.add()
    try:
        process = forked.qtui(*command, said=tmp_path / "said")
        assert process.pid is not None
        while process.is_alive() and not (actors(node) and known() > 40):
            process.join(0.01)
        assert process.is_alive(), (tmp_path / "said").read_text()
        (worker,) = actors(node)
        connections = psutil.Process(process.pid).children()
        process.kill()
        process.join()
        assert ended(worker), "a worker outlives its engine"
        assert all(ended(each.pid) for each in connections)
        before = known()
        again = forked.ran(*command, folder=tmp_path)
    finally:
        ray_hosts.remove(node)
    assert again["resumed"] >= before, "measured twice"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "alone"))
    alone = forked.ran("sweep", str(source), *asked, folder=tmp_path)
    assert figures(again) == figures(alone)
