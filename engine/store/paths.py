"""Paths of state: XDG folders, a session's folder, its socket."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

import platformdirs

from engine.errors import EngineError


def state_folder() -> Path:
    """``~/.local/state/qtui``, or its XDG equivalent; created if absent."""
    folder = Path(platformdirs.user_state_dir("qtui"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kernel_folder() -> Path:
    """``~/.cache/qtui/kernels``, the cache of compiled kernels; created if absent."""
    folder = Path(platformdirs.user_cache_dir("qtui")) / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def facts_file() -> Path:
    """The fact store, shared by all sessions."""
    return state_folder() / "facts.sqlite"


def session_folder(name: str) -> Path:
    """A session's folder: journal, engine log, lock. Created if absent."""
    folder = state_folder() / "sessions" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def socket_file(name: str) -> Path:
    """The engine's socket, in a folder that only its owner may enter.

    A Unix socket's path is limited to about 100 bytes: a longer one is shortened by hashing.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else None
    folder = (base or Path(tempfile.gettempdir())) / ("qtui" if base else f"qtui-{os.getuid()}")
    # Engines with different state folders (tests, users who share a home) must not share a socket.
    home = hashlib.sha256(str(state_folder()).encode()).hexdigest()[:8]
    folder = folder / home
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in (folder.parent, folder):
        found = each.lstat()  # not stat: a symbolic link is not accepted
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise EngineError(
                f"{each} is not a folder owned by this user: set XDG_RUNTIME_DIR to one that is"
            )
        each.chmod(0o700)
    path = folder / f"{name}.sock"
    if len(str(path).encode()) > 100:
        path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.sock"
    return path


def session_name(source: str) -> str:
    """The session of a model: ``demo``, or a readable name with a hash of its location."""
    if source == "demo":
        return "demo"
    path = Path(os.path.expanduser(source))  # leaves ~NAME unchanged if there is no such user
    where = str(path.resolve()) if path.exists() else source
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", where.rstrip("/").split("/")[-1])[:48] or "model"
    return f"{readable}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"
