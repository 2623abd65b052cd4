"""Weights stored in eight or four bits beside a scale; and packed ones that cannot be read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_PACKED = re.compile(
    r"\.(qweight|weight_packed|weight\.quant_state\.\w+|weight\.absmax|\w+_blocks)$"
)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def refuse_packed(checkpoint: Checkpoint) -> None:
    """Raise if weights are packed by another quantiser, but for mxfp4, which can be read.

    Raises:
        CheckpointError: naming the quantiser and a tensor that it packed.
    """
    method = _method(checkpoint)
    for name, tensor in checkpoint.tensors.items():
        if mxfp4_scales(checkpoint, tensor):
            continue
        integers = name.endswith(".weight") and "int" in tensor.dtype and len(tensor.shape) > 1
        if integers or (_PACKED.search(name) and "float" not in tensor.dtype):
            raise CheckpointError(
                f"{tensor.file} stores {name!r} packed in {tensor.dtype}"
                f"{f' by {method}' if method else ''}; open the checkpoint it was made from"
            )


def mxfp4_scales(checkpoint: Checkpoint, blocks: TensorInfo) -> str | None:
    """The tensor of scales, if ``blocks`` is one of mxfp4: ``[E, out, in / 32, 16]`` bytes."""
    if _method(checkpoint) != "mxfp4" or not blocks.name.endswith("_blocks"):
        return None
    name = blocks.name.removesuffix("_blocks") + "_scales"
    scales = checkpoint.tensors.get(name)
    fits = scales and scales.shape == blocks.shape[:-1] and scales.dtype == "uint8"
    good = blocks.dtype == "uint8" and len(blocks.shape) == 4 and blocks.shape[3] == 16
    return name if fits and good else None


def unpacked(
    checkpoint: Checkpoint, blocks_name: str, scales_name: str, experts: range | None = None
) -> Tensor:
    """The weight ``[E, out, in]`` in float32 that mxfp4 blocks and scales stand for.

    With ``experts`` those alone are read. A byte holds two numbers of four bits, the first in its
    low half; a scale is an exponent of two plus 127 (OCP Microscaling Formats, E2M1 and E8M0).
    Worked out one expert at a time.
    """
    import torch

    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    count, out, groups, _ = checkpoint.tensors[blocks_name].shape
    experts = range(count) if experts is None else experts
    weight = torch.empty(len(experts), out, groups * 32)
    for place, e in enumerate(experts):
        packed = checkpoint.read_rows(blocks_name, e, e + 1)[0]
        exponent = checkpoint.read_rows(scales_name, e, e + 1)[0].to(torch.int32) - 127
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        weight[place] = torch.ldexp(values[codes.int()], exponent[..., None]).flatten(-2)
    return weight


def scales_of(checkpoint: Checkpoint, parts: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    """The scale tensor beside each part stored in eight bits; none if any part has none."""
    if not parts[0].dtype.startswith("float8"):
        return ()
    for suffix in ("_scale_inv", "_scale"):
        names = tuple(part.name + suffix for part in parts)
        if all(name in checkpoint.tensors for name in names):
            return names
    return ()


def multiplied(
    checkpoint: Checkpoint, codes: Tensor, scale_name: str, expert: int | None = None
) -> Tensor:
    """``codes`` of shape ``[.., out, in]`` times their scale, in float32.

    With ``expert``, ``codes`` are ``[1, out, in]`` of a tensor that holds several experts.

    The scale is a number, a column, or one number for each block of a grid; blocks at the edges
    may be cut short. (DeepSeek-V3's ``weight_scale_inv`` is a factor too, despite its name.)
    """
    import torch

    weight = codes.to(torch.float32)
    scale = checkpoint.read(scale_name).to(torch.float32)
    if scale.numel() == 1:
        return weight.mul_(scale.reshape(()))
    if scale.ndim < weight.ndim:
        scale = scale.unsqueeze(-1)
    if expert is not None and scale.ndim == weight.ndim and len(scale) > expert:
        scale = scale[expert : expert + 1]
    if scale.ndim != weight.ndim:
        raise _unlike(checkpoint, scale_name, codes)
    block = _block_shape(checkpoint)
    for dim in (weight.ndim - 2, weight.ndim - 1):
        size, count = weight.shape[dim], scale.shape[dim]
        if count in (1, size):
            continue
        step = block[dim - weight.ndim + 2]
        if count != -(-size // step):
            raise _unlike(checkpoint, scale_name, codes)
        scale = scale.repeat_interleave(step, dim=dim).narrow(dim, 0, size)
    return weight.mul_(scale)


def _method(checkpoint: Checkpoint) -> object:
    config = checkpoint.config.get("quantization_config")
    return config.get("quant_method") if isinstance(config, dict) else None


def _block_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    config = checkpoint.config.get("quantization_config")
    found = config.get("weight_block_size") if isinstance(config, dict) else None
    if isinstance(found, list) and len(found) == 2 and all(type(v) is int and v > 0 for v in found):
        return found[0], found[1]
    return 128, 128


def _unlike(checkpoint: Checkpoint, scale_name: str, codes: Tensor) -> CheckpointError:
    shape = list(checkpoint.tensors[scale_name].shape)
    return CheckpointError(
        f"{checkpoint.tensors[scale_name].file} stores {scale_name!r} as {shape}, which does not "
        f"fit a weight of {list(codes.shape)}"
    )
