"""An engine in another process behind the `Client` interface: its link, driven from a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine import protocol as p
from engine.client.launch import find_engine, launch
from engine.client.link import SocketLink
from engine.session import Session, apply
from engine.store.paths import session_name

T = TypeVar("T")


class Attached:
    """A running engine behind the `Client` interface: its link, driven from a thread."""

    def __init__(self, link: SocketLink, loop: asyncio.AbstractEventLoop) -> None:
        self.session = Session()
        self._link, self._loop = link, loop
        self.of_run = link.of_run
        """Whether the engine belongs to a command without an interface, and ends with it."""
        self._pending: asyncio.Task[p.Sent | Session] | None = None

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def send(self, command: p.AnyCommand) -> None:
        """See `Client`."""
        self._wait(self._link.send(command))

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        """See `Client`.

        Raises:
            EngineGoneError: the engine ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = self._wait(self._next(left))
            if found is None:
                return None
            if isinstance(found, Session):
                self.session = found
                continue
            apply(self.session, found.event, found.seq)
            return found.event

    async def _next(self, timeout: float | None) -> p.Sent | Session | None:
        # A wait that times out must not lose half a frame: the read itself continues.
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._link.receive())
        done, _ = await asyncio.wait({self._pending}, timeout=timeout)
        if not done:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """See `Client`."""
        if self._pending is not None:
            self._loop.call_soon_threadsafe(self._pending.cancel)
        self._wait(self._link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


def attached(source: str, command: str = "") -> Attached | None:
    """The running engine of the source's session; None if there is none.

    Args:
        source: ``demo``, a folder, or a hub id.
        command: the command without an interface that attaches, such as ``qtui eval``: who wants
            to stop the engine is told of it.
    """
    return _attach(find_engine(session_name(source), command))


def _attach(work: Coroutine[Any, Any, SocketLink | None]) -> Attached | None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="link", daemon=True).start()
    try:
        link = asyncio.run_coroutine_threadsafe(work, loop).result()
    except BaseException:
        loop.call_soon_threadsafe(loop.stop)
        raise
    if link is None:
        loop.call_soon_threadsafe(loop.stop)
        return None
    return Attached(link, loop)


def spawned(source: str, *, nice: int = 10) -> Attached:
    """An engine in its own process, started if needed, behind the `Client` interface."""
    found = _attach(launch(source, nice=nice))
    assert found is not None
    return found
