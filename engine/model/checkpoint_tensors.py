"""A checkpoint's tensors for loading a model: read one at a time, dequantised on the fly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.checkpoint.companions import plain_note, read_plain, readers_of, stored_note
from engine.checkpoint.quantised.reader import Reader


@dataclass
class LazyTensor:
    """One tensor of a checkpoint, under the model's name; indexing it reads it."""

    names: tuple[str, ...]
    """Its tensors on disk: one, or weight and scales if it is dequantised."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    after: Callable[[LazyTensor], None] = field(default=lambda _tensor: None)

    def __getitem__(self, _everything: Any) -> Tensor:
        tensor = self.read()
        self.after(self)
        return tensor

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass
class CheckpointTensors:
    """All tensors of a checkpoint, by the names transformers expects on disk."""

    tensors: dict[str, LazyTensor]
    dtype: torch.dtype
    """What most of the weights are stored in; the config's dtype where they are dequantised."""
    note: str | None = None
    """Shown to the user if what is on disk is not what is measured."""

    def counted(self, on_read: Callable[[int, int], None]) -> dict[str, LazyTensor]:
        """The tensors, reporting elements read so far and in total, one call at a time."""
        total = sum(tensor.elements for tensor in self.tensors.values())
        done, lock = 0, Lock()

        def after(tensor: LazyTensor) -> None:
            nonlocal done
            with lock:
                done += tensor.elements
                on_read(done, total)

        for tensor in self.tensors.values():
            tensor.after = after
        return self.tensors


def checkpoint_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> CheckpointTensors:
    """The tensors of ``checkpoint``; those that are quantised come out dequantised in float32.

    Args:
        dtype: what dequantised weights count as stored in.

    Raises:
        CheckpointError: weights are packed by another quantiser.
    """
    tensors = {
        name: LazyTensor((name,), info.shape, _reading(checkpoint, name))
        for name, info in checkpoint.tensors.items()
    }
    found = readers_of(checkpoint)
    note = stored_note(checkpoint)
    if not found and checkpoint.dequantised:
        return CheckpointTensors(tensors, dtype, note)
    if not found:
        return CheckpointTensors(tensors, getattr(torch, checkpoint.dtype), note)
    for reader in found:
        tensors = _joined(checkpoint, reader, tensors)
    return CheckpointTensors(tensors, dtype, plain_note(checkpoint) or note)


def _reading(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: read_plain(checkpoint, name, checkpoint.read(name))


def _joined(
    checkpoint: Checkpoint, reader: Reader, tensors: dict[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """The tensors with those that a layout quantised as the weights they stand for."""
    joined = {name: t for name, t in tensors.items() if not name.endswith(reader.unused)}
    for weight in reader.joined(checkpoint):
        for name in weight.names:
            if name != weight.name:
                del joined[name]
        joined[weight.name] = LazyTensor(weight.names, weight.shape, weight.read)
    return joined
