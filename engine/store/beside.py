"""Folders of sessions beside one that another process has open: ``NAME.PID.N``.

They last as long as their process; what was measured is in the fact store, which all share.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from engine.store.paths import session_folder, state_folder

_numbers = itertools.count(1)


def folder_beside(name: str) -> Path:
    """A new folder beside a session's; those of processes that were killed are deleted."""
    for folder in (state_folder() / "sessions").glob("*.*"):
        process = folder.name.removeprefix(f"{name}.").split(".")[0]
        if folder.name.startswith(f"{name}.") and process.isdecimal() and not lives(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
    return session_folder(f"{name}.{os.getpid()}.{next(_numbers)}")


def lives(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True
