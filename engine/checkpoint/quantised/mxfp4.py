"""mxfp4: 4-bit experts of gpt-oss, ``X_blocks`` with ``X_scales``.

Blocks are ``[E, out, in / 32, 16]`` bytes. A byte holds two 4-bit numbers, the first in its low
half; a scale is a power-of-two exponent plus 127 (OCP Microscaling Formats, E2M1 and E8M0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.quantised.reader import (
    Joined,
    Reader,
    not_finite,
    quant_method,
    scale_of,
)
from engine.checkpoint.weight import Codes
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NAN = 255
"""The exponent that means that a number is none (E8M0)."""
_BLOCKS, _SCALES = "_blocks", "_scales"


def _recognises(checkpoint: Checkpoint, tensor: TensorInfo) -> bool:
    return tensor.name.endswith(_BLOCKS) and "float" not in tensor.dtype


def _why_unlike(checkpoint: Checkpoint, blocks: TensorInfo, scales: TensorInfo) -> str | None:
    if quant_method(checkpoint) != "mxfp4":
        return "no quant_method mxfp4 in its config"
    if blocks.dtype != "uint8" or len(blocks.shape) != 4 or blocks.shape[3] != 16:
        return "another shape than [experts, out, in / 32, 16]"
    if scales.shape != blocks.shape[:-1] or scales.dtype != "uint8":
        return f"scales stored as {scales.dtype} {list(scales.shape)}, which do not fit"
    return None


def _layer(blocks: TensorInfo) -> tuple[str, tuple[int, ...]]:
    experts, out, groups, _ = blocks.shape
    return blocks.name.removesuffix(_BLOCKS), (experts, out, groups * 32)


def _read(checkpoint: Checkpoint, name: str, scale: str, expert: int | None) -> Tensor:
    """The weight ``[E, out, in]`` in float32, computed one expert at a time."""
    import torch

    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    count, out, groups, _ = checkpoint.tensors[name].shape
    experts = range(count) if expert is None else range(expert, expert + 1)
    weight = torch.empty(len(experts), out, groups * 32)
    for place, e in enumerate(experts):
        packed = checkpoint.read_rows(name, e, e + 1)[0]
        stored = checkpoint.read_rows(scale, e, e + 1)[0]
        if bool((stored == _NAN).any()):
            raise CheckpointError(not_finite(checkpoint, scale))
        exponent = stored.to(torch.int32) - 127
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        weight[place] = torch.ldexp(values[codes.int()], exponent[..., None]).flatten(-2)
    return weight


def _codes(checkpoint: Checkpoint, name: str, scale: str) -> Iterator[Codes]:
    """Those of one expert after the other."""
    import torch

    from engine.checkpoint.packed.floats import powers_of_two

    for e in range(checkpoint.tensors[name].shape[0]):
        packed = checkpoint.read_rows(name, e, e + 1)[0]
        stored = checkpoint.read_rows(scale, e, e + 1)[0]
        yield Codes(torch.cat([packed & 15, packed >> 4]), 16, powers_of_two(stored))


def _joined(checkpoint: Checkpoint) -> Iterator[Joined]:
    """Each ``X`` is ``[E, in, out]`` in the model."""
    for blocks in checkpoint.tensors.values():
        if not _recognises(checkpoint, blocks):
            continue
        scale = scale_of(checkpoint, READER, blocks.name)

        def read(name: str = blocks.name, scale: str = scale) -> Tensor:
            return _read(checkpoint, name, scale, None).transpose(-1, -2).contiguous()

        name, (experts, out, row) = _layer(blocks)
        yield Joined(name, (blocks.name, scale), (experts, row, out), read)


READER = Reader(
    name="mxfp4",
    recognises=_recognises,
    methods=("mxfp4",),
    scale=((_BLOCKS, _SCALES),),
    why_unlike=_why_unlike,
    read=_read,
    codes=_codes,
    layer=_layer,
    joined=_joined,
)
