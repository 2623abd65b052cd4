"""Completion of checkpoints and paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.report.wording import size
from qtui.views.completion import Completion

SCANNED = 5_000
"""Names of one folder that are looked at, at most."""
OFFERED = 200
"""Names that are offered, at most."""


def is_path(typed: str) -> bool:
    """Whether something typed can only be a path."""
    return typed.startswith(("/", "./", "../", "~")) or typed in (".", "..")


def complete_path(typed: str, *, files: bool = False) -> list[Completion]:
    """Folders, and files if asked for, that begin with what was typed; checkpoints come first.

    The way to them stays as it was typed, ``~`` too. A folder that holds a ``config.json`` is a
    checkpoint, and so is a GGUF file; its size is said. A folder that cannot be read offers
    nothing. It looks at the disk, and may wait for it.
    """
    if typed in ("~", ".", ".."):
        return [Completion(f"{typed}/")]
    before, slash, leaf = typed.rpartition("/")
    way = before + slash
    try:
        found = _named(Path(way or ".").expanduser(), leaf, files)
    except (OSError, RuntimeError, ValueError):  # no folder, not ours to read; ~nobody; a null byte
        return []
    checkpoints: list[Completion] = []
    others: list[Completion] = []
    for entry in found:
        if _is_gguf(entry):
            checkpoints.append(Completion(way + entry.name, f"checkpoint  {_file_size(entry)}"))
            continue
        weights = _weights(entry.path) if _is_dir(entry) else None
        if weights is None:
            others.append(_other(way, entry))
        else:
            says = f"checkpoint  {size(weights)}" if weights else "checkpoint, no weights"
            checkpoints.append(Completion(way + entry.name, says))
    return checkpoints + others


def _named(folder: Path, leaf: str, files: bool) -> list[os.DirEntry[str]]:
    """Entries of a folder that begin so; in another case only where none does in this."""
    with os.scandir(folder) as entries:
        near = [
            entry
            for entry, _ in zip(entries, range(SCANNED), strict=False)
            if entry.name.lower().startswith(leaf.lower())
            and (leaf.startswith(".") or not entry.name.startswith("."))
            and entry.name.isprintable()
            and (_is_dir(entry) or files or _is_gguf(entry))
        ]
    exact = [entry for entry in near if entry.name.startswith(leaf)]
    return sorted(exact or near, key=lambda entry: _natural(entry.name))[:OFFERED]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``checkpoint-900`` before ``checkpoint-1000``."""
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part.lower())
        for part in re.split(r"([0-9]+)", name)
        if part
    ]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_gguf(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(".gguf") and not _is_dir(entry)


def _other(way: str, entry: os.DirEntry[str]) -> Completion:
    """A folder that holds no checkpoint, or a file."""
    text = way + entry.name
    return Completion(f"{text}/") if _is_dir(entry) else Completion(text, _file_size(entry))


def _file_size(entry: os.DirEntry[str]) -> str:
    try:
        return size(entry.stat().st_size)
    except OSError:
        return ""


def _weights(folder: str) -> int | None:
    """Bytes of the weights in a folder; None where it holds no checkpoint."""
    if not os.path.isfile(os.path.join(folder, "config.json")):
        return None
    sizes = {".safetensors": 0, ".bin": 0}
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(SCANNED), strict=False):
                kind = os.path.splitext(entry.name)[1]
                if kind in sizes and entry.is_file():
                    sizes[kind] += entry.stat().st_size
    except OSError:
        return None
    return sizes[".safetensors"] or sizes[".bin"]


def complete_source(
    typed: str, known: Iterable[Completion] = (), hub_ids: Sequence[str] = ()
) -> list[Completion]:
    """Ways to go on from what was typed as a checkpoint: known sources, the hub's cache, folders.

    Args:
        typed: the input; there are no completions of an empty one.
        known: sources that were open before, with what is said of them.
        hub_ids: models in the hub's local cache.
    """
    if not typed.strip():
        return []
    offers = [] if is_path(typed) else [*known]
    if not is_path(typed):
        offers += [Completion(id, "in the hub's cache") for id in hub_ids]
    offers = _ranked(typed, offers)
    taken = {offer.text for offer in offers}
    return (offers + [offer for offer in complete_path(typed) if offer.text not in taken])[:OFFERED]


def _ranked(typed: str, offers: list[Completion]) -> list[Completion]:
    """Those that contain what was typed, those that begin with it before the rest; each once."""
    typed = typed.lower()
    once: dict[str, Completion] = {}
    for offer in offers:
        if typed in offer.text.lower():
            once.setdefault(offer.text, offer)
    return sorted(once.values(), key=lambda offer: not offer.text.lower().startswith(typed))
