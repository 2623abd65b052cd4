"""A worker: an engine that saves nothing, and does what it is told over a channel."""

from __future__ import annotations

import os
import queue
import threading

from engine import protocol as p
from engine.client.in_process import InProcess, JobError
from engine.workers.channel import Channel


def serve(channel: Channel) -> None:
    """Run commands one after the other, and send their events, until the other end is gone.

    A command ends with `JobEnded` or `Refused`, as in any engine.
    """
    commands: queue.SimpleQueue[p.AnyCommand] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, commands), daemon=True).start()
    engine = InProcess(None)
    while True:
        try:
            for event in engine.run(commands.get()):
                channel.send(p.Sent(0, event))
        except JobError:
            continue  # sent as an event, as all others


def _listen(channel: Channel, commands: queue.SimpleQueue[p.AnyCommand]) -> None:
    """Receive commands; end the process with the engine that sends them, whatever it is doing."""
    try:
        while True:
            message = channel.receive()
            if isinstance(message, p.Command):
                commands.put(message)
    except (EOFError, OSError):
        os._exit(0)
