"""One engine per session: the lock file in the session's folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from engine.errors import EngineError
from engine.store.paths import StateFolderError, unwritable


class SessionBusyError(EngineError):
    """Another engine has the session open."""

    exit_code = 75
    """By which a launcher knows why an engine did not start (``EX_TEMPFAIL``)."""


def take(path: Path, patience: float) -> IO[bytes]:
    """Lock a file until it is closed; the system releases the lock when the process dies.

    Args:
        path: of the lock file.
        patience: seconds to wait for an engine that is about to exit.

    Raises:
        SessionBusyError: another process holds the lock.
        StateFolderError: the file cannot be written.
    """
    try:
        handle = path.open("a+b", buffering=0)
    except OSError as error:
        raise StateFolderError(unwritable(error.strerror or str(error))) from error
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            handle.seek(0)
            holder = handle.read().decode(errors="replace").strip() or "unknown"
            handle.close()
            raise SessionBusyError(
                f"another run (process {holder}) has the session {path.parent.name} open: "
                "wait until it ends, or stop that process"
            ) from error
    try:
        handle.truncate(0)
        handle.write(str(os.getpid()).encode())
    except OSError as error:
        handle.close()
        raise StateFolderError(unwritable(error.strerror or str(error))) from error
    return handle


def is_running(folder: Path) -> bool:
    """Whether an engine has the session in ``folder`` open."""
    return holder(folder) is not None


def holder(folder: Path) -> int | None:
    """The process that has the session in ``folder`` open; None if none has."""
    process = 0
    try:
        with (folder / "lock").open() as lock:
            process = int(lock.read().strip() or "x")
            os.kill(process, 0)
            # Try the lock only if that process is alive; its number may have been reused.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return process
    except (OSError, ValueError):  # no lock file, no process id in it, or no such process
        return None
