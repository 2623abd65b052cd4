"""Joining a cluster, with a process in place of the one that Ray is imported in."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from engine import protocol as p
from engine.errors import UsageError
from engine.measure import sharing
from engine.workers import cluster as module
from engine.workers.cluster import Cluster, Joined, Node, tell

NODE = Node("a", "gpu-1", gpus=2, processors=16)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The other ends of clusters' sockets."""
    found: list[socket.socket] = []

    def started(cluster: Cluster, theirs: socket.socket) -> subprocess.Popen[bytes]:
        found.append(theirs.dup())
        waits = "import sys; sys.stdin.read(); sys.exit('no module named ray')"
        return subprocess.Popen(
            [sys.executable, "-c", waits], stdin=subprocess.PIPE, stderr=cluster._said
        )

    monkeypatch.setattr(module, "check_ray", lambda: None)
    monkeypatch.setattr(Cluster, "_started", started)
    return found


def loaded(workers: str) -> Any:
    return SimpleNamespace(settings=p.Settings(workers=workers))


def finished(steps: Generator[None, None, Cluster | None]) -> Cluster | None:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Cluster | None = end.value
            return found


def test_other_jobs_may_run_while_a_cluster_is_joined(
    theirs: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "WAIT", 0.001)
    with ExitStack() as held:
        steps = sharing.joined(loaded("ray"), held)
        assert next(steps) is None
        assert next(steps) is None
        tell(theirs[0], Joined((NODE,)))
        cluster = finished(steps)
        assert cluster is not None
        assert cluster.nodes == (NODE,)
        process: Any = cluster._process
        assert process.poll() is None
    assert process.poll() is not None
    process.stdin.close()


def test_a_connection_that_ends_says_why(theirs: list[socket.socket]) -> None:
    with ExitStack() as held:
        cluster = Cluster("auto")
        held.callback(cluster.close)
        assert cluster._process.stdin is not None
        cluster._process.stdin.close()
        theirs[0].close()
        with pytest.raises(UsageError, match=r"cannot be joined: .* code 1: no module named ray"):
            assert cluster.nodes


def test_without_a_cluster_nothing_is_joined(theirs: list[socket.socket]) -> None:
    with ExitStack() as held:
        assert finished(sharing.joined(loaded("2"), held)) is None
    assert not theirs
