"""A checkpoint's tensors as a model asks for them: read one at a time, dequantised on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, scaled
from engine.errors import CheckpointError

UNUSED = (".input_scale", ".output_scale", ".activation_scale")
"""Scales of activations beside eight-bit weights: a reference has unquantised activations."""


@dataclass
class LazyTensor:
    """One tensor of the model as the checkpoint has it; indexing it reads it."""

    names: tuple[str, ...]
    """What it is made from on disk: one name, or weight and scales where it is dequantised."""
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
    """All tensors of a checkpoint, by the names transformers would look for on disk."""

    tensors: dict[str, LazyTensor]
    dtype: torch.dtype
    """What most of the weights are stored in; the config's dtype where they are dequantised."""
    note: str | None = None
    """Said to the person when what is on disk is not what is measured."""

    def counted(self, on_read: Callable[[int, int], None]) -> dict[str, LazyTensor]:
        """The tensors, telling elements read so far and in all, one call at a time."""
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
    """The tensors of ``checkpoint``; fp8 with scales and mxfp4 come out dequantised in float32.

    Args:
        dtype: what dequantised weights count as stored in.

    Raises:
        CheckpointError: weights are packed by another quantiser.
    """
    quantization = checkpoint.config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    tensors = {
        name: LazyTensor((name,), info.shape, _reading(checkpoint, name))
        for name, info in checkpoint.tensors.items()
    }
    if method == "mxfp4":
        return CheckpointTensors(
            _from_mxfp4(checkpoint, tensors), dtype, "stored in mxfp4, dequantised as reference"
        )
    scaled.refuse_packed(checkpoint)
    if not any(info.dtype.startswith("float8") for info in checkpoint.tensors.values()):
        if method is not None:
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: this checkpoint is already quantised "
                f"(quant_method {method!r}); open the one it was made from"
            )
        return CheckpointTensors(tensors, getattr(torch, checkpoint.dtype))
    return CheckpointTensors(
        _from_fp8(checkpoint, tensors), dtype, "stored in fp8, dequantised as reference"
    )


def _reading(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: checkpoint.read(name)


def _from_fp8(checkpoint: Checkpoint, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    joined = {name: t for name, t in tensors.items() if not name.endswith(UNUSED)}
    for name, info in checkpoint.tensors.items():
        scales = scaled.scales_of(checkpoint, (info,))
        if not scales:
            continue

        def read(name: str = name, scale: str = scales[0]) -> Tensor:
            return scaled.multiplied(checkpoint, checkpoint.read(name), scale)

        del joined[scales[0]]
        joined[name] = LazyTensor((name, *scales), info.shape, read)
    return joined


def _from_mxfp4(checkpoint: Checkpoint, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Joins ``X_blocks`` [E, rows, groups, 16] and ``X_scales`` into ``X`` [E, columns, rows]."""
    joined = dict(tensors)
    for name, blocks in tensors.items():
        base = name.removesuffix("_blocks")
        scales = tensors.get(f"{base}_scales")
        if base == name or scales is None:
            continue

        def read(blocks: LazyTensor = blocks, scales: LazyTensor = scales) -> Tensor:
            weight = scaled.unpacked(checkpoint, blocks.names[0], scales.names[0])
            return weight.transpose(-1, -2).contiguous()

        experts, rows, groups, half = blocks.shape
        del joined[name], joined[scales.names[0]]
        joined[base] = LazyTensor((name, scales.names[0]), (experts, groups * half * 2, rows), read)
    return joined
