"""Workers that are forked from a process that has torch, and crews that wait for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from engine import protocol as p
from engine.workers.channel import Channel
from engine.workers.crew import Command, Crew
from engine.workers.local import LocalWorker, Process
from engine.workers.serving import serve
from tests.forked import _FORKS


class _Fork:
    """A forked process, as one that `subprocess` started."""

    def __init__(self, theirs: socket.socket) -> None:
        given = (theirs, dict(os.environ))
        self._process = _FORKS.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _serve(connected: socket.socket, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    os.setsid()
    import torch

    torch.set_num_threads(1)
    serve(Channel(connected))


@dataclass
class Doom:
    """A signal that the first worker to get there is sent."""

    during: type[p.Command]
    after: int
    """Events of such a command."""
    signal: signal.Signals
    before: Callable[[], None]
    """Called just before."""


class ForkedWorker(LocalWorker):
    """A worker that imports nothing anew."""

    def __init__(self, name: str, device: str, threads: int | None = None) -> None:
        super().__init__(name, device, threads)
        self.commands: list[p.AnyCommand] = []
        self.dooms: list[Doom] = []
        """What awaits any of the workers that have the same list."""

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        self.commands.append(command)
        self._meet(type(command), 0)
        for number, event in enumerate(super().run(command), 1):
            yield event
            self._meet(type(command), number)

    def _meet(self, during: type[p.Command], after: int) -> None:
        for doom in list(self.dooms):
            if doom.during is during and doom.after == after:
                self.dooms.clear()
                assert self.pid is not None
                doom.before()
                os.kill(self.pid, doom.signal)

    def _started(self, theirs: socket.socket) -> Process:
        return _Fork(theirs)


class PatientCrew(Crew):
    """A crew whose engine takes pieces once every worker has done some of them, or is lost."""

    _before: Mapping[object, int] = {}
    """How many each had done when these pieces were queued."""

    def begin(
        self, pieces: Mapping[str, str], command: Command, *, at_once: int = 1, by_key: bool = True
    ) -> None:
        with self._changed:
            self._before = {hand: hand.done for hand in self._hands}
            super().begin(pieces, command, at_once=at_once, by_key=by_key)

    @property
    def ready(self) -> int:
        with self._changed:
            self._changed.wait_for(lambda: all(each.status != "starting" for each in self._hands))
        return super().ready

    def take(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._queue
                    or all(
                        hand.done > self._before[hand] or hand.status == "lost"
                        for hand in self._hands
                    )
                )
            )
        return super().take()
