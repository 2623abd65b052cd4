"""Which files of a checkpoint are read: whole regular files inside its folder, of a sane size.

Whoever made a checkpoint chooses what lies under its names. A pipe makes a reader wait for ever, a
device never ends, a link leads anywhere, and a file of ten terabytes costs nothing if it has holes.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from engine.checkpoint.links import check_link
from engine.errors import CheckpointError

LARGEST_TEXT = 100_000_000
"""Bytes of a JSON or tokenizer file, at most; the largest real ones take a third of it."""
SPARSE = 1 << 30
"""Bytes from which on a file is looked at for holes."""
STORED = 16
"""A file that takes less than one part of so many on disk has holes."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_file(
    folder: Path, file: Path, *, follow: bool = False, largest: int | None = None
) -> None:
    """Refuse a file that must not be read, before any of it is read.

    Args:
        folder: of the checkpoint.
        file: inside of it; it exists, or is a link.
        follow: whether links may lead out of the folder.
        largest: bytes that such a file has at most.

    Raises:
        CheckpointError: it is no regular file, a link that leads out or nowhere, larger than any
            real one, or mostly holes.
    """
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} links to a file that is missing; download it again"
        ) from error
    except OSError as error:
        circle = error.errno == errno.ELOOP
        why = "links to itself" if circle else f"cannot be read: {error.strerror or error}"
        raise CheckpointError(f"{file} {why}; download it again") from error
    check_link(folder, file, follow=follow)
    if not stat.S_ISREG(found.st_mode):
        kind = _kind(found.st_mode)
        raise CheckpointError(f"{file} is {kind}, not a file: do not trust this checkpoint")
    if largest is not None and found.st_size > largest:
        raise CheckpointError(
            f"{file} is {found.st_size} bytes long, beyond any real one ({largest} at most): do "
            "not trust this checkpoint"
        )
    # Some network file systems count no blocks at all.
    stored = getattr(found, "st_blocks", 0) * 512
    if found.st_size >= SPARSE and 0 < stored < found.st_size // STORED:
        raise CheckpointError(
            f"{file} says that it is {found.st_size} bytes long, but only {stored} are on disk, "
            "the rest are holes: finish the download"
        )


def missing_folder(source: str) -> str:
    """Say of what is neither a folder nor a file what it is instead, or that it is not there."""
    try:
        mode = os.stat(os.path.expanduser(source)).st_mode
    except (OSError, ValueError):
        return f"{source}: no such folder"
    return f"{source} is {_kind(mode)}, neither a folder nor a GGUF file"


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "no regular file")


def is_there(file: Path) -> bool:
    """Whether a name is taken: by a file, or by anything else, such as a broken link."""
    return os.path.lexists(file)
