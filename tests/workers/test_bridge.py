"""The process that is connected to a cluster says why a worker is lost, whatever Ray raises."""

from __future__ import annotations

import os
import socket
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine import protocol as p
from engine.workers import bridge
from engine.workers.cluster import Cluster, Failed, HostedWorker, Lost, Place
from engine.workers.hosted import Hosted
from engine.workers.worker import WorkerLostError

PLACE = Place(worker=3, node="a", gpu=False, threads=1, processors=1)
OPEN = p.Open("demo", p.Settings())


class Ray:
    """As much of Ray as a worker takes, which fails."""

    def __init__(self, *, starting: Exception | None, running: Exception | None) -> None:
        self.starting, self.running = starting, running
        self.killed = threading.Event()
        self.util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
        self.connect = SimpleNamespace(remote=lambda *_: "until")

    def remote(self, *given: Any) -> Any:
        if given[0] is not Hosted and self.starting is not None:
            raise self.starting
        return self

    def options(self, **options: Any) -> Any:
        return self

    def get(self, sent: str) -> None:
        assert self.running is not None
        raise self.running

    def kill(self, actor: Any) -> None:
        self.killed.set()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a", "Alive": True}]


@pytest.mark.parametrize(
    ("starting", "running"),
    [
        (RuntimeError("cannot be had"), None),
        (None, RuntimeError("the stack\nengine.errors.EngineError: cannot be had")),
        (None, OSError("cannot be had")),
    ],
)
def test_it_says_why_a_worker_is_lost_and_ends_its_line(
    starting: Exception | None, running: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Ray(starting=starting, running=running)
    kinds = ("ActorUnavailableError", "ActorUnschedulableError", "RayActorError")
    taken = ("remote", "get", "kill", "nodes", "util")
    for name, members in {
        "ray": {each: getattr(ray, each) for each in taken},
        "ray.exceptions": {each: type(each, (Exception,), {}) for each in kinds},
        "ray.util": {},
        "ray.util.scheduling_strategies": {"NodeAffinitySchedulingStrategy": lambda *_, **__: None},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    (control, told), (ours, theirs) = socket.socketpair(), socket.socketpair()
    with control, told, ours:
        bridge._serve(Hosted, PLACE, theirs, told, threading.Lock())
        assert not ours.recv(1), "the engine would wait for ever"
        cluster = Cluster.__new__(Cluster)
        cluster._control, cluster._received = control, b""
        assert cluster._line(60) == Lost(PLACE.worker, "cannot be had")
    assert starting is not None or ray.killed.wait(60)


def test_a_worker_says_how_the_connection_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster: Any = SimpleNamespace(why=lambda worker: f"the connection of {worker} ended")

    def place(place: Place) -> socket.socket:
        raise BrokenPipeError(32, "Broken pipe")

    cluster.place = place
    with pytest.raises(WorkerLostError, match="the connection of 3 ended"):
        list(HostedWorker("3 on host", "cpu", PLACE, cluster).run(OPEN))


@pytest.mark.parametrize(
    ("address", "named", "why"),
    [
        ("auto", "", "there is none, and RAY_ADDRESS is not set"),
        ("auto", "head:6379", "give --address"),
        ("head:6379", "", "give --address"),
    ],
)
def test_it_says_why_a_cluster_cannot_be_joined(
    address: str, named: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("the stack\ngive --address")

    module = ModuleType("ray")
    module.__dict__.update(init=init)
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.chdir(os.getcwd())  # which is left
    ours, theirs = socket.socketpair()
    with ours:
        assert bridge.main(str(theirs.detach()), address) == 1
        cluster = Cluster.__new__(Cluster)
        cluster._control, cluster._received = ours, b""
        assert cluster._line(60) == Failed(why)
