"""A socket on which others can attach to an engine that runs in this process."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading

from engine import protocol as p
from engine.errors import EngineError
from engine.service.server import Engine, Server
from engine.store.paths import socket_file

log = logging.getLogger(__name__)

LEAVE_SECONDS = 8.0
"""Seconds to wait for the thread, which sends clients what happened last."""


class Serving:
    """Serves an engine from a thread of its own, until it is closed."""

    def __init__(self, name: str, engine: Engine) -> None:
        """
        Args:
            name: of the session, which the engine has open.
            engine: what clients talk to.
        """
        self._name, self._engine = name, engine
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="socket", daemon=True)
        self._thread.start()
        self._listening.wait()

    def announce(self, seq: int, event: p.AnyEvent) -> None:
        """Send an event to every client; from any thread, never blocking."""
        if self._server is not None:
            self._server.announce(seq, event)

    def close(self) -> None:
        """Let every client go."""
        if self._loop is not None and self._server is not None:
            self._loop.call_soon_threadsafe(self._server.stop)
            self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except (EngineError, OSError):
            # Nobody can attach; the measurement goes on.
            log.exception("the engine of %s cannot be attached to", self._name)
        finally:
            self._listening.set()

    async def _serve(self) -> None:
        def begin() -> Engine:
            self._loop, self._server = asyncio.get_running_loop(), server
            self._listening.set()
            return self._engine

        server = Server(socket_file(self._name), self._name, stop_run=_interrupt)
        await server.run(begin, math.inf)


def _interrupt() -> None:
    """End this process's run in good order, as `qtui stop` asks for."""
    os.kill(os.getpid(), signal.SIGTERM)
