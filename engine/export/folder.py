"""A folder that appears complete or not at all, and the files copied into it."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint.links import check_link
from engine.errors import EngineError, UsageError
from engine.model.source import BESIDE
from engine.store.beside import lives

NAME = 200
"""Bytes of a destination's name that a temporary name can repeat: names end at 255."""
COPIED = (
    *(pattern for pattern in BESIDE if pattern != "config.json"),
    *("additional_chat_templates/*", "*processor_config.json", "*.py"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)
"""Files that a checkpoint needs besides config and weights, or that must accompany it."""


def check_destination(out: Path, source: Path, *, overwrite: bool) -> None:
    """Raise if an export to ``out`` would destroy something.

    Raises:
        UsageError: ``out`` exists and may not be overwritten, is not a checkpoint, or is the one
            being exported.
        EngineError: the parent folder is missing or cannot be written to.
    """
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise EngineError(f"{out.parent} is not a writable folder; give another path")
    if source.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out} is the checkpoint being exported; give another path")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} exists and is not a folder; give another path")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} exists already; give another path, or overwrite it (--overwrite)")
    if not (out / "config.json").is_file():
        raise UsageError(
            f"{out} has files but no config.json: it is not a checkpoint, and is not overwritten"
        )


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``out`` on success and is removed on failure."""
    partial = unfinished(out)
    partial.mkdir()
    try:
        yield partial
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """The name of a temporary file that replaces ``out`` on success and is removed on failure."""
    partial = unfinished(out)
    try:
        yield partial
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def unfinished(out: Path) -> Path:
    """What an export is called until it is complete.

    What exports that were killed have left is removed; and where one was killed between taking the
    old folder away and putting the new one in its place, the old one comes back.
    """
    name, encoded = out.name, os.fsencode(out.name)
    if len(encoded) > NAME:
        name = hashlib.sha256(encoded).hexdigest()
    for left in out.parent.glob(f".{glob.escape(name)}.*.*"):
        process, _, suffix = left.name.removeprefix(f".{name}.").partition(".")
        if not process.isdecimal():  # of another destination, whose name begins alike
            continue
        if lives(int(process)) and int(process) != os.getpid():
            continue
        if suffix == "old" and not out.exists():
            left.rename(out)
        elif suffix in ("old", "partial"):
            _remove(left)
    return out.parent / f".{name}.{os.getpid()}.partial"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def copied_files(source: Path, *, follow_links: bool = False) -> list[Path]:
    """The files of `COPIED` in a checkpoint's folder, relative to it.

    Args:
        source: the folder.
        follow_links: whether they may be links out of it.

    Raises:
        CheckpointError: one links to a file outside of the folder.
    """
    found = sorted({file for pattern in COPIED for file in source.glob(pattern) if file.is_file()})
    for file in found:
        check_link(source, file, follow=follow_links)
    return [file.relative_to(source) for file in found]


def copy_files(source: Path, files: list[Path], into: Path) -> None:
    """Copy files, given relative to ``source``; links become files."""
    for file in files:
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, into / file)
