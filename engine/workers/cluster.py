"""Workers on other hosts: an engine's end of the process that connects it to a cluster of Ray.

That process is `engine.workers.bridge`. Lines of JSON go to it and come from it. With a worker's
goes a socket, over which its connection comes back, and which the engine closes to end it.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from engine.errors import UsageError
from engine.workers.asked import JOINED, check_ray
from engine.workers.channel import READ, Channel
from engine.workers.child import END_SECONDS, last_words, started
from engine.workers.connected import ENDED, ConnectedWorker
from engine.workers.worker import WorkerLostError

REACHED_SECONDS = 5.0
"""Seconds that the head of a cluster may take to accept a connection."""
JOINED_SECONDS = 60.0
"""Seconds that joining a cluster may take; Ray itself tries for two minutes."""
START = (
    "`ray start --head --port=6379` on one host and `ray start --address=HOST:6379` on the others"
)


class Node(msgspec.Struct, frozen=True):
    """A host of the cluster, as far as it takes part."""

    id: str
    host: str
    gpus: int
    processors: int


class Place(msgspec.Struct, frozen=True):
    """Where a worker is to run."""

    worker: int
    node: str
    gpu: bool
    threads: int | None
    """Of the processor; None on a GPU."""
    processors: int = 0
    """That Ray reserves."""


class Joined(msgspec.Struct, frozen=True, tag=True):
    """The cluster's nodes but the engine's own."""

    nodes: tuple[Node, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Why the cluster was not joined."""

    why: str


class Lost(msgspec.Struct, frozen=True, tag=True):
    """Why a worker's socket is closed."""

    worker: int
    why: str


Told = Joined | Failed | Lost
_told = msgspec.json.Decoder(Told)
_place = msgspec.json.Decoder(Place)


def tell(control: socket.socket, message: Told) -> None:
    """Send a line to the engine."""
    control.sendall(msgspec.json.encode(message) + b"\n")


def placed(control: socket.socket) -> Iterator[tuple[Place, socket.socket]]:
    """Workers that the engine wants, each with its socket, until the engine is gone."""
    data, sockets = b"", list[int]()
    while True:
        try:
            more, descriptors, _, _ = socket.recv_fds(control, READ, 16)
        except OSError:
            return
        if not more:
            return
        data += more
        sockets += descriptors
        while b"\n" in data:
            line, _, data = data.partition(b"\n")
            yield _place.decode(line), socket.socket(fileno=sockets.pop(0))


class Cluster:
    """The connection to a cluster, from its start until `close`."""

    _bridge: tuple[str, ...] = ("engine.workers.bridge",)
    """The module that connects to it, and what it is told first."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: ``HOST:PORT`` of its head; ``auto`` is the one that this host has joined.

        Raises:
            UsageError: Ray is not installed, or nothing answers at the address.
        """
        check_ray()
        self.address = address
        reach(address)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the cluster
        self._control, theirs = socket.socketpair()
        self._received = b""
        self._lost: dict[int, str] = {}
        self._closed = False
        self._changing = threading.Lock()
        with theirs:
            self._process = self._started(theirs)
        self._until = time.monotonic() + JOINED_SECONDS
        self._nodes: tuple[Node, ...] | None = None

    def join(self, seconds: float) -> bool:
        """Wait until the cluster is joined, at most so long; returns whether it is.

        Raises:
            UsageError: it cannot be joined.
        """
        if self._nodes is not None:
            return True
        match self._line(seconds):
            case Joined(nodes):
                self._nodes = nodes
                return True
            case Failed(why):
                said = why.rstrip(".")
                raise UsageError(f"{self.name} cannot be joined: {said}; start one with {START}")
            case None if self._process.poll() is None and time.monotonic() < self._until:
                return False
        raise UsageError(
            f"{self.name} cannot be joined: {self._why_ended()}; on this host too, run "
            "`ray start --address=HOST:PORT` with the address of the cluster's head"
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes but the engine's own; waits until the cluster is joined.

        Raises:
            UsageError: it cannot be joined.
        """
        while not self.join(JOINED_SECONDS):
            pass
        assert self._nodes is not None
        return self._nodes

    def worker(self, name: str, device: str, place: Place) -> HostedWorker:
        """A worker there, which is started once it runs a command."""
        return HostedWorker(name, device, place, self)

    def place(self, place: Place) -> socket.socket:
        """Start a worker; returns the socket over which its connection will come.

        Raises:
            OSError: the process that is connected to the cluster has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._changing:
            line = msgspec.json.encode(place) + b"\n"
            try:
                socket.send_fds(self._control, [line], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def why(self, worker: int) -> str:
        """Why a worker's channel is closed."""
        with self._changing:
            while worker not in self._lost:
                if self._closed:
                    return ENDED
                told = self._line(END_SECONDS)
                if told is None and self._process.poll() is None:
                    return "its connection has ended, and Ray has not said why"
                if not isinstance(told, Lost):
                    return self._why_ended()
                self._lost[told.worker] = told.why
            return self._lost[worker]

    def close(self) -> None:
        """Leave the cluster; its workers for this engine end."""
        with suppress(OSError):  # the other end is gone
            self._control.shutdown(socket.SHUT_RDWR)
        with self._changing:
            self._closed = True
            self._control.close()
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            self._said.close()

    def _started(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        module = (*self._bridge, str(theirs.fileno()), self.address)
        return started(module, theirs, self._said, os.environ)

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        which = "that this host is part of" if self.address == JOINED else f"at {self.address}"
        return f"the Ray cluster {which}"

    def _line(self, seconds: float) -> Told | None:
        """The next line; None if none comes in time, or ever."""
        until = time.monotonic() + seconds
        while b"\n" not in self._received:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._control], [], [], left)[0]:
                return None
            data = self._control.recv(READ)
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        told: Told = _told.decode(line)
        return told

    def _why_ended(self) -> str:
        """How the process ended, and what it said last."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        return f"the connection to the cluster ended with code {code}{last_words(self._said)}"


class HostedWorker(ConnectedWorker):
    """A worker on a host of a cluster; it ends with the engine, however that ends."""

    def __init__(self, name: str, device: str, place: Place, cluster: Cluster) -> None:
        super().__init__(name, device)
        self._place, self._cluster = place, cluster
        self._line: socket.socket | None = None
        self._channel: Channel | None = None
        self._closed = False
        self._changing = threading.Lock()

    def close(self) -> None:
        """See `Worker.close`."""
        with self._changing:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
            if self._line is not None:
                with suppress(OSError):  # the other end is gone
                    self._line.shutdown(socket.SHUT_RDWR)
                self._line.close()

    def _begun(self) -> Channel:
        with self._changing:
            if self._closed:
                raise WorkerLostError(ENDED)
            if self._channel is not None:
                return self._channel
            try:
                self._line = self._cluster.place(self._place)
            except OSError as error:  # the process that is connected to the cluster has ended
                raise WorkerLostError(self._cluster.why(self._place.worker)) from error
            line = self._line.dup()  # of which `close` wakes who waits
        with line:  # a GPU that others hold may take any time
            _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        if not descriptors:
            raise WorkerLostError(self._why())
        with self._changing:
            self._channel = Channel(socket.socket(fileno=descriptors[0]))
            if self._closed:
                self._channel.close()
                raise WorkerLostError(ENDED)
            return self._channel

    def _why(self) -> str:
        return ENDED if self._closed else self._cluster.why(self._place.worker)


def reach(address: str) -> None:
    """Raise `UsageError` at once if nothing answers at the address of a cluster's head."""
    if address in ("", JOINED):  # Ray looks for that one itself
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({error}): start one with {START}"
        ) from error
