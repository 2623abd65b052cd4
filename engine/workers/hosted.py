"""A worker in a process of a cluster: an engine that saves nothing, in an actor of Ray.

Nothing of Ray is imported here. `engine.workers.bridge` makes it an actor.
"""

from __future__ import annotations

import os
import socket

from engine import protocol as p
from engine.errors import EngineError
from engine.service.process import own_process
from engine.workers.channel import Channel


class Hosted:
    """Runs commands that come over a connection to the engine's host."""

    def __init__(self, wire: int, threads: int | None) -> None:
        """
        Args:
            wire: version of the messages that the engine sends.
            threads: of the processor; None leaves what the environment says.

        Raises:
            EngineError: messages have another version here.
        """
        if wire != p.WIRE_VERSION:
            raise EngineError(
                f"its messages have version {p.WIRE_VERSION} instead of {wire}: install the same "
                "version of qtui everywhere"
            )
        if threads is not None:  # Ray has set it for the processors that it counts
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        own_process()

    def connect(self, host: str, port: int, token: bytes) -> None:
        """Serve the engine that listens there, until it is gone; this process ends with it.

        Args:
            host: the engine's.
            port: where it listens.
            token: by which it knows this worker.

        Raises:
            OSError: it cannot be reached.
        """
        connected = socket.create_connection((host, port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.sendall(token)
        self._serve(Channel(connected))

    def _serve(self, channel: Channel) -> None:
        from engine.workers.serving import serve

        serve(channel)
