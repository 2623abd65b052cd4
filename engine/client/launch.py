"""Start a session's engine in its own process, and attach to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from engine.client.link import EngineEndingError, EngineGoneError, SocketLink, connect
from engine.client.log import MAX_LOG, STARTS, log_file
from engine.store.lock import SessionBusyError, holder
from engine.store.paths import check_state_folder, session_folder, session_name, socket_file

IDLE_MINUTES = 10.0
"""Minutes without clients and jobs after which an engine ends, unless a profile says otherwise."""
END_SECONDS = 10.0
"""How long an engine that is ending may still accept connections, or have the session open."""
START_SECONDS = 120.0
"""How long a started engine may take to open its socket, on a machine that is busy."""


def start_ahead(
    source: str, *, nice: int = 10, idle: float = IDLE_MINUTES
) -> subprocess.Popen[bytes] | None:
    """Start the source's engine for a later `launch`, unless one seems to be running.

    Its interpreter starts, and imports what triage needs, while the caller keeps importing; it
    imports no model library before it is asked to open something. If another engine has the
    session open, it exits.
    """
    name = session_name(source)
    return None if socket_file(name).exists() else start_engine(name, nice, idle)


async def launch(
    source: str,
    *,
    nice: int = 10,
    idle: float = IDLE_MINUTES,
    started: subprocess.Popen[bytes] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> SocketLink:
    """Attach to the engine of the source's session; start one first if there is none.

    A process that is dying may have the session open for a while: a new engine waits for it.

    The engine runs in its own process group, so that neither ``ctrl+c`` nor a hang-up of the
    terminal reaches it.

    Args:
        source: ``demo``, a folder, or a hub id.
        nice: niceness of a new engine.
        idle: minutes without clients and jobs after which a new engine ends.
        started: result of `start_ahead`, for the first launch after it alone: an engine that was
            reached once may be dying.
        say: called with a sentence when there is something to wait for.

    Raises:
        EngineGoneError: the engine did not start; the message has the end of its log, or names the
            run that has the session open.
    """
    name = session_name(source)
    if (link := await find_engine(name)) is not None:
        return link
    patience = time.monotonic() + END_SECONDS
    while True:
        if (link := await _until_free(name, started, patience, say)) is not None:
            return link
        ready, started = started, None
        if ready is None or ready.poll() is not None:
            ready = start_engine(name, nice, idle)
        try:
            link = await _reach(name, ready)
        except BaseException:
            # No client will attach to it, so nothing else would stop it.
            ready.terminate()
            raise
        if link is not None:
            link.process = ready
            return link


async def _until_free(
    name: str,
    started: subprocess.Popen[bytes] | None,
    patience: float,
    say: Callable[[str], None],
) -> SocketLink | None:
    """Wait until nothing else has the session open, or attach to what has.

    Args:
        name: of the session.
        started: an engine that may be about to open its socket.
        patience: until when to wait, as `time.monotonic` counts.

    Raises:
        EngineGoneError: a process still has it open, and cannot be attached to.
    """
    said = False
    while True:
        if (link := await find_engine(name)) is not None:
            return link
        busy = holder(session_folder(name))
        if busy is None or (started is not None and busy == started.pid):
            return None
        if time.monotonic() > patience:
            raise EngineGoneError(
                f"another run (process {busy}) has {name} open, and none can attach to it: wait "
                "until it ends, or stop that process; what it has measured is saved"
            )
        if not said:
            said = True
            say(f"process {busy}, which had {name} open, is ending: waiting for it")
        await asyncio.sleep(0.02)


async def find_engine(name: str, command: str = "") -> SocketLink | None:
    """Attach to the running engine of a session, unless there is none, or it is just ending.

    One that was killed closes its files one by one. On a busy machine its clients know that it is
    gone while others can connect to it still.

    Args:
        name: of the session.
        command: see `connect`.

    Raises:
        EngineGoneError: it does not answer, or is of another version.
    """
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            return await connect(name, command)
        except EngineEndingError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def running_engine(source: str) -> SocketLink:
    """Attach to the running engine of the source's session; start none.

    Raises:
        EngineGoneError: there is none.
    """
    name = session_name(source)
    if (link := await find_engine(name)) is None:
        raise EngineGoneError(f"no engine of {name} is running")
    return link


async def _reach(name: str, process: subprocess.Popen[bytes]) -> SocketLink | None:
    """Attach to an engine that was started; None if it ended because another has the session."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (link := await find_engine(name)) is not None:
            return link
        if process.poll() is not None:
            # Another engine may have started first and have the session open.
            if (link := await find_engine(name)) is not None:
                return link
            if process.returncode == SessionBusyError.exit_code:
                return None
            raise EngineGoneError.of(name, "the engine did not start")
        await asyncio.sleep(0.02)
    raise EngineGoneError.of(name, f"the engine did not answer in {START_SECONDS:.0f} s")


def start_engine(name: str, nice: int, idle: float = IDLE_MINUTES) -> subprocess.Popen[bytes]:
    """Start a session's engine in its own process group, with its output in the session's log.

    Raises:
        StateFolderError: nothing can be saved.
    """
    check_state_folder()
    log = log_file(name)
    mode = "wb" if log.exists() and log.stat().st_size > MAX_LOG else "ab"
    with log.open(mode) as output:
        _mark(output, name)
        return subprocess.Popen(
            # -P: do not import a folder named engine in the working directory.
            [sys.executable, "-P", "-m", "engine", name, "--nice", str(nice), "--idle", str(idle)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def _mark(log: IO[bytes], name: str) -> None:
    """Separate what is logged from now on from the words of earlier engines."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # on a full disk the engine says more
        log.write(f"{now} INFO engine.client: {STARTS}: session {name}\n".encode())
        log.flush()
