"""One engine a session: the lock in the session's folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from engine.errors import EngineError


class SessionBusyError(EngineError):
    """Another engine holds the session."""


def take(path: Path, patience: float) -> IO[str]:
    """Hold a lock file for as long as it stays open; the system frees it when a process dies.

    Args:
        path: of the lock.
        patience: seconds to wait for an engine that is about to end.

    Raises:
        SessionBusyError: if another process holds it.
    """
    handle = path.open("a+")
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
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise SessionBusyError(
                f"another run (process {holder}) holds the session {path.parent.name}: "
                "wait for its end, or stop that process"
            ) from error
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def is_running(folder: Path) -> bool:
    """Whether an engine holds the session in ``folder``."""
    try:
        with (folder / "lock").open() as lock:
            os.kill(int(lock.read().strip() or "x"), 0)
            # The lock is tried only where its holder's number is alive: it may be another's now.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except (OSError, ValueError):  # no lock, no number in it, no such process
        return False
