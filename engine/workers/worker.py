"""What an engine knows of a worker: it runs commands, and it may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from engine import protocol as p
from engine.errors import EngineError


class WorkerLostError(EngineError):
    """A worker died, or does not get on."""


class Worker(Protocol):
    """A process that runs commands, each to its end."""

    name: str
    """For people."""
    device: str

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        """Run a command, and yield its events; the last is `JobEnded` or `Refused`.

        Raises:
            WorkerLostError: it died, or did not get on.
        """

    def close(self) -> None:
        """End it, whatever it is doing; from any thread. To close it again changes nothing."""


class Patience:
    """How long a worker may go without progress.

    It depends on how long its steps have taken, since nothing else says how long one takes. A wait
    is counted in short pieces: a machine that slept, or an engine that was stopped, has not waited.
    """

    LEAST = 300.0
    """Seconds that any step may take."""
    FACTOR = 20.0
    """How much longer than the longest step so far one may take."""

    def __init__(self) -> None:
        self.longest = self.waited = 0.0

    @property
    def limit(self) -> float:
        """Seconds that the present step may take."""
        return max(self.LEAST, self.FACTOR * self.longest)

    def wait(self, seconds: float, at_most: float) -> None:
        """Count a wait, of which ``at_most`` seconds were meant.

        Raises:
            WorkerLostError: it was too long.
        """
        self.waited += min(seconds, 2 * at_most)
        if self.waited > self.limit:
            raise WorkerLostError(f"it has made no progress for {self.waited:.0f} s")

    def progress(self) -> None:
        """Count the end of a step."""
        self.longest = max(self.longest, self.waited)
        self.waited = 0.0
