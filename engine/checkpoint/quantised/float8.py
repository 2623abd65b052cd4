"""fp8: 8-bit weights, ``W.weight`` with ``W.weight_scale_inv`` or ``W.weight_scale``.

Used by DeepSeek, ``quant_method: fp8`` and compressed-tensors' ``float-quantized``. The scale is
one number, a column, or one number per block; blocks at the edges may be smaller. (DeepSeek-V3's
``weight_scale_inv`` is a factor too, despite its name.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.quantised.reader import Joined, Reader, quantization_config
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = ("_scale_inv", "_scale")
_DEFAULT_BLOCK = (128, 128)


def _recognises(checkpoint: Checkpoint, tensor: TensorInfo) -> bool:
    return tensor.dtype.startswith("float8")


def _scales(checkpoint: Checkpoint, parts: tuple[TensorInfo, ...]) -> tuple[str, ...]:
    for suffix in _SUFFIXES:
        names = tuple(part.name + suffix for part in parts)
        if all(name in checkpoint.tensors for name in names):
            return names
    return ()


def _read(checkpoint: Checkpoint, name: str, scale: str, expert: int | None) -> Tensor:
    if expert is None:
        return multiplied(checkpoint, checkpoint.read(name), scale)
    codes = checkpoint.read_rows(name, expert, expert + 1)
    return multiplied(checkpoint, codes, scale, expert)


def _joined(checkpoint: Checkpoint) -> Iterator[Joined]:
    for name, info in checkpoint.tensors.items():
        if not _recognises(checkpoint, info) or not (scales := _scales(checkpoint, (info,))):
            continue

        def read(name: str = name, scale: str = scales[0]) -> Tensor:
            return _read(checkpoint, name, scale, None)

        yield Joined(name, (name, *scales), info.shape, read)


def multiplied(
    checkpoint: Checkpoint, codes: Tensor, scale_name: str, expert: int | None = None
) -> Tensor:
    """``codes`` of shape ``[.., out, in]`` times their scale, in float32.

    With ``expert``, ``codes`` are ``[1, out, in]`` of a tensor that holds several experts.

    Raises:
        CheckpointError: the scale does not fit.
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


def _block_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    found = quantization_config(checkpoint).get("weight_block_size")
    if isinstance(found, list) and len(found) == 2 and all(type(v) is int and v > 0 for v in found):
        return found[0], found[1]
    return _DEFAULT_BLOCK


def _unlike(checkpoint: Checkpoint, scale_name: str, codes: Tensor) -> CheckpointError:
    shape = list(checkpoint.tensors[scale_name].shape)
    return CheckpointError(
        f"{checkpoint.tensors[scale_name].file} stores {scale_name!r} as {shape}, which does not "
        f"fit a weight of {list(codes.shape)}"
    )


READER = Reader(
    name="fp8",
    recognises=_recognises,
    methods=("fp8", "compressed-tensors"),
    scales=_scales,
    read=_read,
    joined=_joined,
    bare=True,
    # Scales of activations: the reference has unquantised activations.
    unused=(".input_scale", ".output_scale", ".activation_scale"),
)
