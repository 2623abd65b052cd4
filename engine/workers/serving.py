"""A worker: an engine that saves nothing, and does what it is told over a channel."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from engine import protocol as p
from engine.client.in_process import InProcess, JobError
from engine.workers.channel import Channel

BETWEEN = 0.1
"""Seconds without any event after which progress is sent: it says that the worker gets on."""
DELAY = 0.1
"""Seconds that an event waits for others."""


def serve(channel: Channel) -> None:
    """Run commands one after the other, and send their events, until the other end is gone.

    A command ends with `JobEnded` or `Refused`, as in any engine.
    """
    commands: queue.SimpleQueue[p.AnyCommand] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, commands), daemon=True).start()
    engine, outlet = InProcess(None), Outlet(channel.send)
    while True:
        try:
            for event in engine.run(commands.get()):
                outlet.send(event)
        except JobError:
            continue  # sent as an event, as all others


class Outlet:
    """Sends events, those of a moment together: each time wakes the other end.

    Progress is sent only where nothing else was sent for a while.
    """

    def __init__(self, send: Callable[..., None]) -> None:
        """
        Args:
            send: takes some messages to the other end, or raises OSError if it is gone.
        """
        self._deliver, self._last = send, 0.0
        self._waiting: list[p.AnyEvent] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._flush, name="outlet", daemon=True).start()

    def send(self, event: p.AnyEvent) -> None:
        """Send an event soon, or leave it out; the end of a command is sent at once.

        Raises:
            OSError: the other end is gone.
        """
        now = time.monotonic()
        with self._changed:
            if isinstance(event, p.Progress | p.Stage | p.Gauges) and now - self._last < BETWEEN:
                return
            self._last = now
            self._waiting.append(event)
            if isinstance(event, p.JobEnded | p.Refused):
                self._send()
            elif len(self._waiting) == 1:  # others are waited for, undisturbed
                self._changed.notify()

    def _flush(self) -> None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting)
                self._changed.wait(DELAY)
                try:
                    self._send()
                except OSError:
                    return  # who listens ends the process

    def _send(self) -> None:
        if self._waiting:
            self._deliver(*(p.Sent(0, event) for event in _joined(self._waiting)))
            self._waiting.clear()


def _joined(events: Sequence[p.AnyEvent]) -> Iterator[p.AnyEvent]:
    """The same events; facts that follow each other are in one."""
    for fresh, run in groupby(events, lambda e: e.fresh if isinstance(e, p.Learned) else None):
        if fresh is None:
            yield from run
            continue
        learnt = [event for event in run if isinstance(event, p.Learned)]
        keys = tuple(key for event in learnt for key in event.keys)
        yield p.Learned(keys, tuple(fact for event in learnt for fact in event.facts), fresh)


def _listen(channel: Channel, commands: queue.SimpleQueue[p.AnyCommand]) -> None:
    """Receive commands; end the process with the engine that sends them, whatever it is doing."""
    try:
        while True:
            message = channel.receive()
            if isinstance(message, p.Command):
                commands.put(message)
    except (EOFError, OSError):
        os._exit(0)
