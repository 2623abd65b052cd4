"""Files written whole: a reader finds the old one or the new one, never a half."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

TRIES = 1000
"""Numbers that are tried beside a name that is taken."""


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in place of whatever was there.

    A pipe or a device is written to, not replaced; a link stays one, and its target is replaced.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    beside = _beside(path)
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_new(path: Path, content: Callable[[Path], bytes]) -> Path:
    """Write a file under a name that nothing has yet: ``a.csv``, else ``a-2.csv``, ``a-3.csv``, …

    Args:
        path: the name that is wanted.
        content: what to write; it is told the name, since it may say it.

    Returns:
        The path it was written to.

    Raises:
        OSError: if it cannot be written, or if too many of these names are taken.
    """
    beside = _beside(path)
    try:
        while True:
            free = free_name(path)
            beside.write_bytes(content(free))
            try:
                # A link is refused where the name is taken, so two writers never meet.
                os.link(beside, free)
            except FileExistsError:
                continue
            except OSError:  # a file system without links
                try:
                    os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                except FileExistsError:
                    continue
                beside.replace(free)
            return free
    finally:
        beside.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """The first of ``a.csv``, ``a-2.csv``, … that nothing has, a broken link included.

    Raises:
        OSError: if too many are taken.
    """
    for number in range(1, TRIES):
        wanted = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(wanted):
            return wanted
    raise FileExistsError(errno.EEXIST, f"{TRIES} files of that name are there", str(path))


def _beside(path: Path) -> Path:
    # The name is cut: with what is put around it, it must not grow too long for a folder.
    return path.with_name(f".{path.name[:32]}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
