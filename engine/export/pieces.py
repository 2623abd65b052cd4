"""Tensors of an export, made one after another as their shards are written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.export.shards import ShardWriter, Slot
from engine.export.writer import OnProgress


class Piece(NamedTuple):
    """Tensors that are made together, from one layer or tensor of the source."""

    slots: dict[str, Slot]
    make: Callable[[], dict[str, Tensor]]


Shards = Mapping[str, Sequence[Piece]]
"""What goes into each file, by its name."""


def bytes_of(shards: Shards) -> int:
    """Of all tensors."""
    return sum(slot.bytes for piece in _all(shards) for slot in piece.slots.values())


def shard_name(number: int, count: int) -> str:
    """The name that transformers gives the file with this number, from 1."""
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def check_room(folder: Path, needed: int) -> None:
    """Raise where the disk of a folder has less room than that many bytes.

    Raises:
        EngineError: it has.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EngineError(
            f"{folder} has {free / 2**30:.2f} GiB free and the checkpoint takes "
            f"{needed / 2**30:.2f} GiB; give a path on another disk"
        )


@torch.no_grad()
def write_shards(shards: Shards, folder: Path, total: int, on_progress: OnProgress) -> None:
    """Make every piece and write it, one in memory at a time; then the index, if there are several.

    Args:
        shards: what goes where.
        folder: to write to.
        total: `bytes_of` them.
        on_progress: told how far it has come.
    """
    done = 0
    places: dict[str, str] = {}
    for file, pieces in shards.items():
        slots = {name: slot for piece in pieces for name, slot in piece.slots.items()}
        with ShardWriter(folder / file, slots) as shard:
            for piece in pieces:
                on_progress(done, total, next(iter(piece.slots)))
                made = piece.make()
                for name in list(made):
                    shard.write(name, made.pop(name))
                done += sum(slot.bytes for slot in piece.slots.values())
            shard.finish()
        places |= dict.fromkeys(slots, file)
    on_progress(done, total, "")
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON document with its keys in order."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")


def _all(shards: Shards) -> Iterator[Piece]:
    for pieces in shards.values():
        yield from pieces
