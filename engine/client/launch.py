"""Start a session's engine in its own process, and attach to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

from engine.client.link import EngineEndingError, EngineGoneError, SocketLink, connect
from engine.client.log import MAX_LOG, log_file
from engine.store.lock import holder
from engine.store.paths import check_state_folder, session_folder, session_name, socket_file

IDLE_MINUTES = 10.0
"""Minutes without clients and jobs after which an engine ends, unless a profile says otherwise."""
END_SECONDS = 5.0
"""How long an engine that is ending may still accept connections."""
START_SECONDS = 30.0
"""How long a started engine may take to open its socket."""


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
) -> SocketLink:
    """Attach to the engine of the source's session; start one first if there is none.

    The engine runs in its own process group, so that neither ``ctrl+c`` nor a hang-up of the
    terminal reaches it.

    Args:
        source: ``demo``, a folder, or a hub id.
        nice: niceness of a new engine.
        idle: minutes without clients and jobs after which a new engine ends.
        started: result of `start_ahead`.

    Raises:
        EngineGoneError: the engine did not start; the message has the end of its log, or names the
            run that has the session open.
    """
    name = session_name(source)
    if (link := await find_engine(name)) is not None:
        return link
    alive = started is not None and started.poll() is None
    process = started if started is not None and alive else start_engine(name, nice, idle)
    try:
        link = await _reach(name, process)
        link.process = process
        return link
    except BaseException:
        # No client will attach to it, so nothing else would stop it.
        process.terminate()
        raise


async def find_engine(name: str) -> SocketLink | None:
    """Attach to the running engine of a session, unless there is none, or it is just ending.

    One that was killed closes its files one by one. On a busy machine its clients know that it is
    gone while others can connect to it still.

    Raises:
        EngineGoneError: it does not answer, or is of another version.
    """
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            return await connect(name)
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


async def _reach(name: str, process: subprocess.Popen[bytes]) -> SocketLink:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (link := await find_engine(name)) is not None:
            return link
        if process.poll() is not None:
            # Another engine may have started first and have the session open.
            if (link := await find_engine(name)) is not None:
                return link
            if (busy := holder(session_folder(name))) is not None:
                raise EngineGoneError(
                    f"another run (process {busy}) measures this checkpoint without an interface, "
                    "and none can attach to it: wait until it ends, or stop that process; what it "
                    "has measured is saved"
                )
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
        return subprocess.Popen(
            # -P: do not import a folder named engine in the working directory.
            [sys.executable, "-P", "-m", "engine", name, "--nice", str(nice), "--idle", str(idle)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
