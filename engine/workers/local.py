"""A worker on this machine: a process of its own, at the other end of a socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import Protocol

from engine.workers.channel import Channel
from engine.workers.child import END_SECONDS, last_words, started
from engine.workers.connected import ENDED, ConnectedWorker
from engine.workers.worker import WorkerLostError


class Process(Protocol):
    """What is asked of a process."""

    @property
    def pid(self) -> int:
        """Its number."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; returns its code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """

    def kill(self) -> None:
        """End it at once."""


class LocalWorker(ConnectedWorker):
    """A process on a device of this machine; it ends with the engine, however that ends."""

    def __init__(self, name: str, device: str, threads: int | None = None) -> None:
        """
        Args:
            name: for people.
            device: that its commands name.
            threads: of the processor; None leaves what the environment says.
        """
        super().__init__(name, device)
        self._threads = threads
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._closed = False
        self._changing = threading.Lock()
        """Held to start the process, to read what it said, and to close: never two at once."""

    @property
    def pid(self) -> int | None:
        """Its process, once it runs a command."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """See `Worker.close`."""
        with self._changing:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
            if self._process is not None:
                self._process.kill()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_SECONDS)
            self._said.close()

    def _begun(self) -> Channel:
        with self._changing:
            if self._closed:
                raise WorkerLostError(ENDED)
            if self._channel is None:
                ours, theirs = socket.socketpair()
                with theirs:
                    self._process = self._started(theirs)
                self._channel = Channel(ours)
            return self._channel

    def _started(self, theirs: socket.socket) -> Process:
        """A process that serves a socket, of which it has its own copy.

        Raises:
            OSError: it cannot be started.
        """
        environment = dict(os.environ)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(self._threads)
        return started(("engine.workers", str(theirs.fileno())), theirs, self._said, environment)

    def _why(self) -> str:
        """How the process ended, and what it said last."""
        if self._closed or self._process is None:
            return ENDED
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it does not answer any more"
        with self._changing:
            if self._closed:
                return ENDED
            said = last_words(self._said)
        if code < 0:
            with suppress(ValueError):
                return f"it was ended by {signal.Signals(-code).name}{said}"
        return f"it ended with code {code}{said}"
