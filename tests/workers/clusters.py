"""A real cluster of Ray on this machine: several raylets, each a node with a processor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from engine.workers.cluster import Cluster, HostedWorker, Place
from engine.workers.worker import Worker

STORE = 80 << 20
"""Bytes of a node's object store: close to the least that Ray accepts."""
SECONDS = 60.0


class Hosts:
    """A cluster's head and further nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster: Any = RayCluster(initialize_head=True, head_node_args=self._given(1))
        self.address: str = self._cluster.address

    def add(self, processors: int = 1, environment: Mapping[str, str] | None = None) -> Any:
        """Add a node, whose processes have these variables too."""
        given = self._given(processors)
        return self._cluster.add_node(**given, env_vars=dict(environment or {}))

    def remove(self, node: Any, *, graceful: bool = True) -> None:
        """Have a node leave."""
        self._cluster.remove_node(node, allow_graceful=graceful)

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()

    @staticmethod
    def _given(processors: int) -> dict[str, Any]:
        return {
            "num_cpus": processors,
            "num_gpus": 0,
            "object_store_memory": STORE,
            "include_dashboard": False,
        }


@contextmanager
def hosts() -> Iterator[Hosts]:
    """A cluster with a head alone, ended afterwards."""
    found = Hosts()
    try:
        yield found
    finally:
        found.close()


def actors(node: Any = None) -> set[int]:
    """Processes of workers on this machine, or of those on one node."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            called = process.cmdline()[:1]
            here = node is None or process.ppid() == _raylet(node)
            if here and called and called[0].startswith("ray::Hosted"):
                found.add(process.pid)
    return found


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def ended(pid: int, seconds: float = SECONDS) -> bool:
    """Whether a process ends in time."""
    with suppress(psutil.NoSuchProcess):
        until = time.monotonic() + seconds
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                return False
            with suppress(psutil.TimeoutExpired):
                process.wait(0.05)
    return True


def on_first_node(cluster: Cluster, number: int) -> HostedWorker:
    """A worker on the first node that is not the engine's."""
    place = Place(worker=number, node=cluster.nodes[0].id, gpu=False, threads=1)
    worker: Worker = cluster.worker(f"{number} on host", "cpu", place)
    assert isinstance(worker, HostedWorker)
    return worker
