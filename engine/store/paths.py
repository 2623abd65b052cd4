"""Paths of state: XDG folders, a session's folder, its socket."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

import platformdirs

from engine.errors import EngineError

_PROBE = 1 << 16
"""Bytes that must fit into the state folder before anything is measured."""


class StateFolderError(EngineError):
    """The state folder cannot be written: it is absent, protected, or full."""


class SocketFolderError(EngineError):
    """The folder of sockets cannot be created, so that no engine can be listening there."""


def state_path() -> Path:
    """``~/.local/state/qtui``, or its XDG equivalent, which may not exist yet."""
    return Path(platformdirs.user_state_dir("qtui"))


def state_folder() -> Path:
    """The folder of `state_path`; created if absent.

    Raises:
        StateFolderError: it cannot be created.
    """
    return _made(state_path())


def check_state_folder() -> None:
    """Write a small file to the state folder, and remove it.

    Raises:
        StateFolderError: the folder cannot be written, or its disk is full.
    """
    folder = state_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise StateFolderError(unwritable(_reason(folder, error))) from error


def unwritable(reason: str) -> str:
    """A sentence for a state folder that cannot be written, and what to do."""
    return (
        f"the state folder {state_path()}, which keeps measurements and sessions, cannot be "
        f"written ({reason}): make room or allow writing there, or set XDG_STATE_HOME to another "
        "folder"
    )


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateFolderError(unwritable(_reason(folder, error))) from error
    return folder


def _reason(folder: Path, error: OSError) -> str:
    """What the system said; a disk may be full of files rather than of bytes."""
    said = error.strerror or str(error)
    if error.errno != errno.ENOSPC:
        return said
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    try:
        left = os.statvfs(there)
    except OSError:
        return said
    return "no inodes are left: too many files" if left.f_files and not left.f_favail else said


def kernel_folder() -> Path:
    """``~/.cache/qtui/kernels``, the cache of compiled kernels; created if absent."""
    folder = Path(platformdirs.user_cache_dir("qtui")) / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def facts_file() -> Path:
    """The fact store, shared by all sessions."""
    return state_folder() / "facts.sqlite"


def session_folder(name: str) -> Path:
    """A session's folder: journal, engine log, lock. Created if absent.

    Raises:
        StateFolderError: it cannot be created.
    """
    return _made(state_path() / "sessions" / name)


def socket_file(name: str) -> Path:
    """The engine's socket, in a folder that only its owner may enter.

    A Unix socket's path is limited to about 100 bytes: a longer one is shortened by hashing.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else None
    folder = (base or Path(tempfile.gettempdir())) / ("qtui" if base else f"qtui-{os.getuid()}")
    # Engines with different state folders (tests, users who share a home) must not share a socket.
    home = hashlib.sha256(str(state_path()).encode()).hexdigest()[:8]
    folder = folder / home
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SocketFolderError(
            f"{folder}, the folder of sockets, cannot be created ({_reason(folder, error)}): set "
            "XDG_RUNTIME_DIR to a folder that can be written"
        ) from error
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
    # Unlike `Path.exists`, it takes names that are too long for a file: they are no file.
    where = str(path.resolve()) if os.path.exists(path) else source
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", where.rstrip("/").split("/")[-1])[:48] or "model"
    return f"{readable}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"
