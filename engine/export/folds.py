"""Scales that ``+awq`` and ``+smooth`` fold into the model, as an export writes them.

A layer's codes are those of ``W · diag(s)``. Its inputs are divided by ``s`` where they are made:
in the weight of a norm, or in the rows of a layer, whose codes stay and whose scales are divided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, DiskLayer
from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.float8 import Float8
from engine.quant.methods.channel_scales import folded
from engine.quant.methods.gptq import Solved
from engine.quant.quantized import Quantized
from engine.quant.scales import EMPTY_SCALE
from engine.quant.stored import StoredWeight


@dataclass(frozen=True, eq=False)
class Folds:
    """What folding changes in a checkpoint; in main memory."""

    scales: Mapping[str, Tensor] = field(default_factory=dict)
    """``s`` by layer, float32 ``[in]``: codes are those of the weight multiplied by it."""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """By layer that absorbs a scale: factors of its rows, powers of two, float32 ``[out]``."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By name on disk: weights and biases that replace those of the checkpoint."""

    def scaled(self, layer: str, weight: Tensor) -> Tensor:
        """A layer's weight ``[…, out, in]`` before it is rounded."""
        scale = self.scales.get(layer)
        return weight if scale is None else folded(weight, scale.to(weight.device))

    def divided(self, layer: str, form: StoredWeight | Solved) -> StoredWeight | Solved:
        """A layer's stored form ``[…, out, in]`` with the factors of its rows.

        Raises:
            FormatError: a scale becomes too small or too large for its dtype.
        """
        factor = self.rows.get(layer)
        return form if factor is None else with_rows(form, factor, layer)

    def read(self, checkpoint: Checkpoint, tensor: str, row: DiskLayer | None) -> Tensor:
        """A tensor of the checkpoint that is not stored as codes, as it is to be written.

        Args:
            checkpoint: the source.
            tensor: its name on disk.
            row: the layer that it is, or is a part of; None for others.
        """
        if tensor in self.tensors:
            return self.tensors[tensor]
        whole = checkpoint.read(tensor)
        factor = None if row is None else self.rows.get(row.name)
        if row is None or factor is None:
            return whole
        factor = factor[lines_of(checkpoint, row, tensor)]
        if not row.transposed:
            factor = factor.unsqueeze(-1)
        return (whole.to(torch.float32) * factor).to(whole.dtype)


def why_not_divided(fmt: Format) -> str | None:
    """Why factors of rows cannot go into the scales of a format without changing a code; None if
    they can."""
    if fmt.kept:
        return None
    if fmt.family not in ("integer", "float8"):
        return f"{fmt.name} has no scales of its rows that a power of two could be multiplied into"
    if fmt.strategy not in ("group", "channel"):
        return f"several of its rows share a scale in {fmt}"
    return None


def with_rows(form: StoredWeight | Solved, factor: Tensor, name: str) -> StoredWeight | Solved:
    """The stored form of ``diag(factor) · W``, with the codes that ``W`` has.

    Args:
        form: of a weight ``[…, out, in]``; of a format that `why_not_divided` allows.
        factor: powers of two, ``[out]``.
        name: the layer, for messages.

    Raises:
        FormatError: a scale becomes too small or too large for its dtype.
    """
    if isinstance(form, Solved):
        stored = with_rows(form.stored, factor, name)
        assert not isinstance(stored, Solved)
        return dataclasses.replace(form, stored=stored)
    if not isinstance(form, Quantized | Float8):
        raise TypeError(f"{name}: {type(form).__name__} has no scales of rows")
    exact = form.scale.to(torch.float32) * factor.to(form.scale.device).unsqueeze(-1)
    scale = exact.to(form.scale.dtype)
    empty = form.scale.to(torch.float32) == EMPTY_SCALE  # all its weights are 0
    if bool(((scale.to(torch.float32) != exact) & ~empty).any()):
        dtype = str(form.scale.dtype).removeprefix("torch.")
        raise FormatError(
            f"{name}: it absorbs the scale of the layer after it, and {dtype} does not hold its "
            "own scales divided by that: keep it, or leave '+awq' and '+smooth' out of the layer "
            "after it"
        )
    return dataclasses.replace(form, scale=torch.where(empty, form.scale, scale))


def lines_of(checkpoint: Checkpoint, row: DiskLayer, part: str) -> slice:
    """Which rows of a layer, or of each of its experts, one of its tensors on disk is."""
    if row.role != "experts" or len(row.parts) < row.shape[0]:
        return slice(None)
    each = len(row.parts) // row.shape[0]
    expert, member = divmod(row.parts.index(part), each)
    sizes = [checkpoint.tensors[name].shape[0] for name in row.parts[expert * each :][:each]]
    top = sum(sizes[:member])
    return slice(top, top + sizes[member])
