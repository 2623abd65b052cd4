"""Quantises a weight: the entry point for every family."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format, why_not_alone, why_not_built
from engine.formats.storage import why_not_held
from engine.quant.arithmetic import arithmetic_of, write_dequantized
from engine.quant.data_free.hadamard import Rotated, rotates, write_rotated, write_rotated_back
from engine.quant.rows import matrices
from engine.quant.stored import StoredWeight


def scale_dtype_for(stored: torch.dtype) -> torch.dtype:
    """The dtype that scales are stored in, for a weight stored as ``stored``.

    The checkpoint's own 16-bit dtype, else float16.
    """
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float16


def dequantized(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Tensor:
    """``Ŵ``: the float32 weight that the stored form of ``fmt`` dequantises to.

    Computed in float32, so that the weight's dtype changes nothing. Non-finite values are returned
    as they are and affect no range.

    Args:
        weight: ``[out, in]``, or ``[experts, out, in]`` with each expert on its own; any floating
            dtype and device; not modified.
        fmt: A format that is built; a kept one casts to its dtype and back.
        scale_dtype: The dtype that scales are stored in, see `scale_dtype_for`.
        name: The tensor, for error messages.

    Raises:
        FormatError: The format is not built yet, has a method that looks at inputs, cannot hold
            this shape, or a scale (of a kept format: a value) is too large for its dtype.
    """
    _check(weight, fmt, name)
    weight = weight.detach()
    approx = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for matrix, out in zip(matrices(weight), matrices(approx), strict=True):
        if rotates(fmt):
            turned = torch.empty_like(out)
            write_rotated(matrix, turned)
            write_dequantized(turned, fmt, scale_dtype, out, name)
            write_rotated_back(matrix, out)
        else:
            write_dequantized(matrix, fmt, scale_dtype, out, name)
    return approx


def stored_form(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> StoredWeight:
    """The stored form of a weight, as exported: codes, scales and whatever else ``fmt`` stores.

    ``stored_form(…).approx()`` equals `dequantized` where the weight is finite, and is 0 elsewhere.

    Args:
        weight: ``[out, in]``, or ``[experts, out, in]`` with each expert on its own.
        fmt: A format that is built and not a kept one.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for error messages.

    Raises:
        FormatError: As `dequantized`, and for a kept format.
    """
    _check(weight, fmt, name)
    quantize = arithmetic_of(fmt).quantize
    if not rotates(fmt):
        return quantize(weight, fmt, scale_dtype, name)
    turned = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for matrix, out in zip(matrices(weight.detach()), matrices(turned), strict=True):
        write_rotated(matrix, out)
    return Rotated(quantize(turned, fmt, scale_dtype, name))


def _check(weight: Tensor, fmt: Format, name: str) -> None:
    for why in (why_not_built(fmt), why_not_alone(fmt), why_not_held(fmt, weight.shape)):
        if why is not None:
            raise FormatError(f"{name}: {why}")
