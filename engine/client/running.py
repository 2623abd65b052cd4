"""Engines that run now: which there are, what they do, and how they are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import msgspec

from engine import protocol as p
from engine.client.link import EngineGoneError, connect
from engine.errors import EngineError
from engine.session import Job, Session, running
from engine.store.lock import holder
from engine.store.paths import session_folder

LOOK_SECONDS = 2.0
"""Seconds in which an engine has to show its session."""
END_SECONDS = 40.0
"""Seconds in which an engine that was told to stop has to end: it waits for a step of its jobs."""


class Engine(msgspec.Struct, frozen=True):
    """An engine that runs."""

    pid: int
    bytes: int
    """Resident memory."""
    answers: bool
    """Whether it can be attached to."""
    jobs: list[Job] = []
    """Running and waiting, the most urgent first."""
    of_run: bool = False
    """Whether it belongs to a command without an interface, and ends with it."""


def look(name: str) -> Engine | None:
    """What the engine of a session does now; None if none runs.

    Args:
        name: of the session.
    """
    pid = holder(session_folder(name))
    if pid is None:
        return None
    shown: tuple[Session, bool] | None = None
    with contextlib.suppress(EngineError, OSError, TimeoutError):
        shown = asyncio.run(_shown(name))
    if shown is None:
        return Engine(pid, _resident(pid), False)
    session, of_run = shown
    return Engine(pid, _resident(pid), True, running(session), of_run)


async def _shown(name: str) -> tuple[Session, bool] | None:
    """The session that an engine shows to who attaches, and whether it belongs to a command."""
    async with asyncio.timeout(LOOK_SECONDS):
        link = await connect(name)
        if link is None:
            return None
        try:
            found = await link.receive()
        finally:
            await link.close()
    return (found, link.of_run) if isinstance(found, Session) else None


def _resident(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def stop(name: str) -> int:
    """Stop the engine of a session, whoever is attached to it, and wait until it has ended.

    Args:
        name: of the session.

    Returns:
        The process that ended.

    Raises:
        EngineGoneError: there is none, or it did not end.
    """
    pid = holder(session_folder(name))
    if pid is None:
        raise EngineGoneError(f"no engine of {name} is running")
    try:
        asyncio.run(_told(name))
    except (EngineError, OSError, TimeoutError):
        # It answers nobody, or is a run without an interface: SIGTERM ends both in good order.
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        if holder(session_folder(name)) != pid:
            return pid
        time.sleep(0.05)
    raise EngineGoneError(
        f"the engine of {name} (process {pid}) has not ended after {END_SECONDS:.0f} s: "
        f"`kill -9 {pid}` ends it; results are saved"
    )


async def _told(name: str) -> None:
    async with asyncio.timeout(LOOK_SECONDS):
        link = await connect(name)
        if link is None:
            raise EngineGoneError(f"the engine of {name} does not listen")
        await link.send(p.Stop(others=True))
        await link.close()
