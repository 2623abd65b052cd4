"""A worker at the other end of a socket, wherever it runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from engine import protocol as p
from engine.workers.channel import Channel
from engine.workers.worker import Patience, WorkerLostError

TICK = 1.0
"""Seconds to wait for an event at a time."""
ENDED = "it was ended"


class ConnectedWorker(ABC):
    """What workers of this machine and of other hosts share: commands out, events in."""

    def __init__(self, name: str, device: str) -> None:
        """
        Args:
            name: for people.
            device: that its commands name.
        """
        self.name, self.device = name, device

    def run(self, command: p.AnyCommand) -> Iterator[p.AnyEvent]:
        """See `Worker.run`. A command that opens a checkpoint may take any time."""
        command = p.identified(command)
        channel = self._begun()
        patience = None if isinstance(command, p.Open) else Patience()
        job = ""
        try:
            channel.send(command, timeout=Patience.LEAST)
            while True:
                event = self._next(channel, patience)
                if isinstance(event, p.JobStarted) and event.ask == command.ask:
                    job = event.job
                yield event
                if isinstance(event, p.Refused) and event.ask == command.ask:
                    return
                if isinstance(event, p.JobEnded) and event.job == job:
                    return
        except (EOFError, OSError) as error:
            raise WorkerLostError(self._why()) from error

    @abstractmethod
    def close(self) -> None:
        """See `Worker.close`."""

    @abstractmethod
    def _begun(self) -> Channel:
        """The channel to the worker, which is started if it does not run yet.

        Raises:
            WorkerLostError: it was closed.
            OSError: it cannot be started.
        """

    @abstractmethod
    def _why(self) -> str:
        """Why the other end of the channel is gone."""

    def _next(self, channel: Channel, patience: Patience | None) -> p.AnyEvent:
        while True:
            begun = time.monotonic()
            try:
                message = channel.receive(TICK)
            except TimeoutError:
                message = None
            if patience is not None:
                patience.wait(time.monotonic() - begun, TICK)
            # The gauges move as long as the process lives, whatever it does.
            if not isinstance(message, p.Sent) or isinstance(message.event, p.Gauges):
                continue
            if patience is not None:
                patience.progress()
            return message.event
