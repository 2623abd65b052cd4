"""Atomic file writes: a reader finds the old file or the new one, never part of one."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

TRIES = 1000
"""Numbered names to try if a name is taken."""


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content atomically.

    A pipe or a device is written to, not replaced; of a symbolic link the target is replaced.

    Raises:
        OSError: it cannot be written; the old file remains.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = _temporary_name(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, content: Callable[[Path], bytes]) -> Path:
    """Write a file under an unused name: ``a.csv``, else ``a-2.csv``, ``a-3.csv``, …

    Args:
        path: the preferred name.
        content: returns what to write, given the chosen name, which the content may mention.

    Returns:
        The path it was written to.

    Raises:
        OSError: it cannot be written, or too many of these names are taken.
    """
    temporary = _temporary_name(path)
    try:
        while True:
            free = free_name(path)
            temporary.write_bytes(content(free))
            try:
                # Linking fails if the name is taken, so two writers cannot overwrite each other.
                os.link(temporary, free)
            except FileExistsError:
                continue
            except OSError:  # a file system without links
                try:
                    os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                except FileExistsError:
                    continue
                temporary.replace(free)
            return free
    finally:
        temporary.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """The first unused name of ``a.csv``, ``a-2.csv``, …; a broken link counts as used.

    Raises:
        OSError: if too many are taken.
    """
    for number in range(1, TRIES):
        wanted = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(wanted):
            return wanted
    raise FileExistsError(errno.EEXIST, f"{TRIES} files with this name exist", str(path))


def _temporary_name(path: Path) -> Path:
    # Truncated: with the affixes the name must not exceed the file system's limit.
    return path.with_name(f".{path.name[:32]}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
