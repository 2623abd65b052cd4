"""Writes the tensors of an export to shards, one layer at a time."""

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


class TensorGroup(NamedTuple):
    """Tensors that are computed together, from one layer or tensor of the source."""

    slots: dict[str, Slot]
    make: Callable[[], dict[str, Tensor]]


Shards = Mapping[str, Sequence[TensorGroup]]
"""The contents of each file, by file name."""


def bytes_of(shards: Shards) -> int:
    """Bytes of all tensors."""
    return sum(slot.bytes for group in _all(shards) for slot in group.slots.values())


def shard_name(number: int, count: int) -> str:
    """transformers' name of the file with this number, counted from 1."""
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def check_room(folder: Path, needed: int) -> None:
    """Raise if a disk has less free space than needed.

    Raises:
        EngineError: it has less.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EngineError(
            f"{folder} has {free / 2**30:.2f} GiB free and the checkpoint needs "
            f"{needed / 2**30:.2f} GiB; give a path on another disk"
        )


@torch.no_grad()
def write_shards(shards: Shards, folder: Path, total: int, on_progress: OnProgress) -> None:
    """Compute and write every tensor, one group in memory at a time; then the index, if needed.

    Args:
        shards: what goes into which file.
        folder: to write to.
        total: `bytes_of` them.
        on_progress: called with the bytes written so far.
    """
    done = 0
    places: dict[str, str] = {}
    for file, groups in shards.items():
        slots = {name: slot for group in groups for name, slot in group.slots.items()}
        with ShardWriter(folder / file, slots) as shard:
            for group in groups:
                on_progress(done, total, next(iter(group.slots)))
                made = group.make()
                for name in list(made):
                    shard.write(name, made.pop(name))
                done += sum(slot.bytes for slot in group.slots.values())
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


def _all(shards: Shards) -> Iterator[TensorGroup]:
    for groups in shards.values():
        yield from groups
