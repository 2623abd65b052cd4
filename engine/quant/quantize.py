"""A weight as it is after quantisation: the one entry for every family."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.quant.formats import Format, why_not_built
from engine.quant.integer import write_dequantized
from engine.quant.rows import matrices, row_chunks
from engine.quant.storage import why_not_held

_KEPT = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def scale_dtype_for(stored: torch.dtype) -> torch.dtype:
    """The dtype that scales are stored in, for a weight stored as ``stored``.

    The checkpoint's own 16-bit dtype, else float16.
    """
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float16


def dequantized(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Tensor:
    """``Ŵ``: the float32 weight that the stored form of ``fmt`` stands for.

    Worked out in float32, so that the dtype a weight comes in changes nothing. Values that are
    not finite come back as they are and count for no range.

    Args:
        weight: ``[out, in]``, or ``[experts, out, in]`` with each expert on its own; any floating
            dtype and device; not modified.
        fmt: A format that is built; a kept one casts to its dtype and back.
        scale_dtype: The dtype that scales are stored in, see `scale_dtype_for`.
        name: The tensor, for error messages.

    Raises:
        FormatError: The format is not built yet, cannot hold this shape, or a scale (of a kept
            format: a value) is too large for its dtype.
    """
    for why in (why_not_built(fmt), why_not_held(fmt, weight.shape)):
        if why is not None:
            raise FormatError(f"{name}: {why}")
    weight = weight.detach()
    approx = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for matrix, out in zip(matrices(weight), matrices(approx), strict=True):
        if fmt.kept:
            _write_cast(matrix, fmt, out, name)
        else:
            write_dequantized(matrix, fmt, scale_dtype, out, name)
    return approx


def _write_cast(weight: Tensor, fmt: Format, out: Tensor, name: str) -> None:
    dtype = _KEPT[fmt.name]
    for rows in row_chunks(weight):
        cast = weight[rows].to(dtype)
        if (cast.isinf() & weight[rows].isfinite()).any():
            raise FormatError(
                f"{name}: a weight is too large for {fmt}, which ends at "
                f"{torch.finfo(dtype).max:.3g}: keep this layer in its own dtype"
            )
        out[rows] = cast
