"""What ``ARTEFACT`` is: a folder or a GGUF file, and its size on disk."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from engine.demo import DEMO_PATH
from engine.errors import CheckpointError
from engine.runtimes.declared import Kind

PART = re.compile(r"(.+-)(\d{5})(-of-\d{5}\.gguf)")
"""The name of a part of a GGUF file that was split."""


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
        return Artefact(folder, "folder", sum(each.stat().st_size for each in _weights(folder)))
    files = sorted(folder.glob("*.gguf"))
    first = [
        each for each in files if (part := PART.fullmatch(each.name)) is None or part[2] == "00001"
    ]
    if len(first) == 1:
        return _gguf(first[0])
    if first:
        raise CheckpointError(f"{folder} has {len(first)} GGUF files: name one of them")
    raise CheckpointError(f"{folder} has no config.json and no .gguf file")


def _weights(folder: Path) -> list[Path]:
    """The files that libraries load: others of the same weights, or of the training, may lie beside
    them."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    # Some runtimes find files of any name.
    if loose := [each for each in folder.glob("*.safetensors") if each.is_file()]:
        return loose
    raise CheckpointError(f"{folder} has no weights: neither *.safetensors nor pytorch_model.bin")


def _shards(index: Path) -> list[Path]:
    try:
        claimed = json.loads(index.read_bytes())["weight_map"].values()
        files = [index.parent / name for name in sorted(set(claimed))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights; download it again") from error
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; finish the download")
    return files


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
