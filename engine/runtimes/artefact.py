"""What ``ARTEFACT`` is: a folder or a GGUF file, and its size on disk."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from engine.demo import DEMO_PATH
from engine.errors import CheckpointError
from engine.runtimes.declared import Kind

PART = re.compile(r"(.+-)(\d{5})(-of-\d{5}\.gguf)")
"""The name of a part of a GGUF file that was split."""
WEIGHTS = ("*.safetensors", "*.bin")
"""Files of weights in a folder; the first kind that is there is what libraries load."""


class Artefact(NamedTuple):
    """A finished checkpoint on disk."""

    path: Path
    """The folder, or the GGUF file: its first part if it was split."""
    kind: Kind
    bytes: int
    """Size on disk of its weights: of every part."""


def find_artefact(given: str) -> Artefact:
    """What a path is.

    Args:
        given: a folder, a GGUF file, or ``demo``.

    Raises:
        CheckpointError: there is no finished checkpoint at it.
    """
    path = DEMO_PATH if given == "demo" else Path(os.path.expanduser(given)).absolute()
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"{given} is no file or folder: name a finished checkpoint on this machine"
        )
    if path.suffix != ".gguf":
        raise CheckpointError(f"{path}: expected a folder or a .gguf file")
    return _gguf(path)


def _in_folder(folder: Path) -> Artefact:
    if (folder / "config.json").is_file():
        for pattern in WEIGHTS:
            if found := [each for each in folder.glob(pattern) if each.is_file()]:
                return Artefact(folder, "folder", sum(each.stat().st_size for each in found))
        raise CheckpointError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}")
    files = sorted(folder.glob("*.gguf"))
    first = [
        each for each in files if (part := PART.fullmatch(each.name)) is None or part[2] == "00001"
    ]
    if len(first) == 1:
        return _gguf(first[0])
    if first:
        raise CheckpointError(f"{folder} has {len(first)} GGUF files: name one of them")
    raise CheckpointError(f"{folder} has no config.json and no .gguf file")


def _gguf(path: Path) -> Artefact:
    part = PART.fullmatch(path.name)
    if part is None:
        return Artefact(path, "gguf", path.stat().st_size)
    parts = [
        each
        for each in path.parent.glob("*.gguf")
        if (other := PART.fullmatch(each.name)) is not None
        and (other[1], other[3]) == (part[1], part[3])
    ]
    first = path.parent / f"{part[1]}00001{part[3]}"
    if not first.is_file():
        raise CheckpointError(
            f"{path} is a part of a file whose first part, {first.name}, is missing"
        )
    return Artefact(first, "gguf", sum(each.stat().st_size for each in parts))
