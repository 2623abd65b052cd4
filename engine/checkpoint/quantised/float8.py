"""fp8: 8-bit weights, ``W.weight`` with ``W.weight_scale_inv`` or ``W.weight_scale``.

Used by DeepSeek, ``quant_method: fp8`` and compressed-tensors' ``float-quantized``. The scale is
one number, a column, or one number per block; blocks at the edges may be smaller. (DeepSeek-V3's
``weight_scale_inv`` is a factor too, despite its name.) transformers' ``mxfp8`` stores it as
exponents plus 127 in uint8, one for 32 inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.packed.declared import quantization_config
from engine.checkpoint.quantised.reader import Joined, Reader, not_finite, scale_of
from engine.checkpoint.weight import Codes
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_SCALE_DTYPE = "float8_e8m0fnu"  # a power of two: stores scales, never weights
_DEFAULT_BLOCK = (128, 128)


def _recognises(checkpoint: Checkpoint, tensor: TensorInfo) -> bool:
    return tensor.dtype.startswith("float8") and tensor.dtype != _SCALE_DTYPE


def _read(checkpoint: Checkpoint, name: str, scale: str, expert: int | None) -> Tensor:
    if expert is None:
        return multiplied(checkpoint, checkpoint.read(name), scale)
    codes = checkpoint.read_rows(name, expert, expert + 1)
    return multiplied(checkpoint, codes, scale, expert)


def _codes(checkpoint: Checkpoint, name: str, scale: str) -> Iterator[Codes]:
    """Numbers, whose scales are told with the first of them."""
    import torch

    scales = checkpoint.read(scale)
    if scales.dtype == torch.uint8:
        from engine.checkpoint.packed.floats import powers_of_two

        scales = powers_of_two(scales)
    yield Codes(checkpoint.read(name), 0, scales.to(torch.float32))


def _joined(checkpoint: Checkpoint) -> Iterator[Joined]:
    for name, info in checkpoint.tensors.items():
        if not _recognises(checkpoint, info) or not (scale := scale_of(checkpoint, READER, name)):
            continue

        def read(name: str = name, scale: str = scale) -> Tensor:
            return _read(checkpoint, name, scale, None)

        yield Joined(name, (name, scale), info.shape, read)


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
    scale = checkpoint.read(scale_name)
    if scale.dtype == torch.uint8:
        from engine.checkpoint.packed.floats import powers_of_two

        scale = powers_of_two(scale)
    scale = scale.to(torch.float32)
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(not_finite(checkpoint, scale_name))
    if _is_divisor(checkpoint, scale_name):
        scale = scale.reciprocal()
    if scale.numel() == 1:
        return weight.mul_(scale.reshape(()))
    if scale.ndim < weight.ndim:
        scale = scale.unsqueeze(-1)
    if expert is not None and scale.ndim == weight.ndim and len(scale) > expert:
        scale = scale[expert : expert + 1]
    block = _block_shape(checkpoint)
    if not _fits(tuple(weight.shape), tuple(scale.shape), block):
        raise CheckpointError(
            f"{checkpoint.tensors[scale_name].file} stores {scale_name!r}, which does not fit a "
            f"weight of {list(codes.shape)}"
        )
    for dim, step in zip((weight.ndim - 2, weight.ndim - 1), block, strict=True):
        size = weight.shape[dim]
        if scale.shape[dim] not in (1, size):
            scale = scale.repeat_interleave(step, dim=dim).narrow(dim, 0, size)
    return weight.mul_(scale)


def fits_as_float8(checkpoint: Checkpoint, codes: TensorInfo, scale: TensorInfo) -> bool:
    """Whether a scale is of this layout: one number, or one for each row or block."""
    return _why_unlike(checkpoint, codes, scale) is None


def _is_divisor(checkpoint: Checkpoint, scale: str) -> bool:
    """Whether a scale divides, as it may in GPTQModel's fp8: the only tool that says so."""
    said = quantization_config(checkpoint).get("weight_scale_semantics")
    return said == "inverse" and scale.endswith("_scale_inv")


def _fits(codes: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether a scale is one number, or one for each matrix, row, column or block."""
    if prod(scale) == 1:
        return True
    if len(codes) < 2:
        return scale == codes
    if len(scale) < len(codes):
        scale = (*scale, 1)
    if len(scale) != len(codes):
        return False
    ends = zip(codes[-2:], scale[-2:], block, strict=True)
    return all(a in (1, b) for a, b in zip(scale[:-2], codes[:-2], strict=True)) and all(
        count in (1, size, -(-size // step)) for size, count, step in ends
    )


def _why_unlike(checkpoint: Checkpoint, codes: TensorInfo, scale: TensorInfo) -> str | None:
    block = _block_shape(checkpoint)
    if "float" not in scale.dtype and not _is_exponent(scale):
        return f"a scale stored as {scale.dtype}, which qtui does not read"
    if not _fits(codes.shape, scale.shape, block):
        return (
            f"a scale of {list(scale.shape)}, which does not fit a weight of {list(codes.shape)} "
            f"in blocks of {block[0]}x{block[1]}"
        )
    return None


def _is_exponent(scale: TensorInfo) -> bool:
    """Whether a scale is a power of two in uint8; compressed-tensors' own are read elsewhere."""
    return scale.dtype == "uint8" and scale.name.endswith(("_scale_inv", "_scales_inv"))


def _block_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    found = quantization_config(checkpoint).get("weight_block_size")
    if isinstance(found, list) and len(found) == 2 and all(type(v) is int and v > 0 for v in found):
        return found[0], found[1]
    return _DEFAULT_BLOCK


def _why_not_plain(values: Tensor) -> str | None:
    """Scales make the largest code the largest number of the dtype; no plain weight is near it."""
    import torch

    largest = values.to(torch.float32).abs().nan_to_num(0.0).amax() if values.numel() else 0.0
    if largest < torch.finfo(values.dtype).max / 2:
        return None
    return f"with values up to {float(largest):g}, so they are codes whose scales are missing"


READER = Reader(
    name="fp8",
    recognises=_recognises,
    methods=("fp8", "mxfp8", "fbgemm_fp8", "compressed-tensors"),
    scale=(
        *(("", "_scale_inv"), ("", "_scale")),
        ("", "_scales_inv"),  # of experts that transformers has stacked
        (".weight", ".qscale_weight"),  # Mistral's
    ),
    why_unlike=_why_unlike,
    read=_read,
    codes=_codes,
    joined=_joined,
    why_not_plain=_why_not_plain,
    # Scales of activations and of cached keys and values, which the reference does not quantise.
    unused=(
        *(".input_scale", ".output_scale", ".activation_scale", "_activation_scale"),
        *(".q_scale", ".k_scale", ".v_scale", ".qscale_act"),
    ),
)
