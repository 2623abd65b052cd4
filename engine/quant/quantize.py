"""A weight as it is after quantisation: the one entry for every family."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format, why_not_alone, why_not_built
from engine.formats.storage import why_not_held
from engine.quant import float8, gguf, integer, kmeans, lattice, microscaling, normal_float
from engine.quant.methods.hadamard import Rotated, rotates, write_rotated, write_rotated_back
from engine.quant.rows import matrices, row_chunks
from engine.quant.stored import Stored

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
            _write(turned, fmt, scale_dtype, out, name)
            write_rotated_back(matrix, out)
        else:
            _write(matrix, fmt, scale_dtype, out, name)
    return approx


def stored_form(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Stored:
    """What an export of a weight writes: codes, scales and whatever else ``fmt`` stores.

    ``stored_form(…).approx()`` is `dequantized` where the weight is finite, and 0 elsewhere.

    Args:
        weight: ``[out, in]``, or ``[experts, out, in]`` with each expert on its own.
        fmt: A format that is built and not a kept one.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for error messages.

    Raises:
        FormatError: As `dequantized`, and for a kept format.
    """
    _check(weight, fmt, name)
    if fmt.kept:
        raise FormatError(f"{name}: {fmt} keeps the weight, there are no codes to write")
    if not rotates(fmt):
        return _stored(weight, fmt, scale_dtype, name)
    turned = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for matrix, out in zip(matrices(weight.detach()), matrices(turned), strict=True):
        write_rotated(matrix, out)
    return Rotated(_stored(turned, fmt, scale_dtype, name))


def _stored(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> Stored:
    if fmt.name in float8.FLOAT8:
        return float8.quantize_float8(weight, fmt, scale_dtype, name)
    if fmt.name == "nvfp4":
        return microscaling.quantize_nvfp4(weight, fmt)
    if fmt.family == "float":
        return microscaling.quantize_microscaled(weight, fmt, name)
    if fmt.family == "gguf":
        return gguf.quantize_gguf(weight, fmt, name)
    if fmt.name in ("kmeans3", "kmeans4"):
        return kmeans.quantize_kmeans(weight, fmt, scale_dtype, name)
    if fmt.name == "e8-2":
        return lattice.quantize_lattice(weight)
    if fmt.family == "codebook":
        return normal_float.quantize_normal_float(weight, fmt)
    return integer.quantize_integer(weight, fmt, scale_dtype, name)


def _check(weight: Tensor, fmt: Format, name: str) -> None:
    for why in (why_not_built(fmt), why_not_alone(fmt), why_not_held(fmt, weight.shape)):
        if why is not None:
            raise FormatError(f"{name}: {why}")


def _write(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, out: Tensor, name: str) -> None:
    if fmt.kept:
        _write_cast(weight, fmt, out, name)
    elif fmt.name in float8.FLOAT8:
        float8.write_dequantized(weight, fmt, scale_dtype, out, name)
    elif fmt.family == "float":
        microscaling.write_dequantized(weight, fmt, out, name)
    elif fmt.family == "gguf":
        gguf.write_dequantized(weight, fmt, out, name)
    elif fmt.name in ("kmeans3", "kmeans4"):
        kmeans.write_dequantized(weight, fmt, scale_dtype, out, name)
    elif fmt.name == "e8-2":
        lattice.write_dequantized(weight, out)
    elif fmt.family == "codebook":
        normal_float.write_dequantized(weight, fmt, out)
    else:
        integer.write_dequantized(weight, fmt, scale_dtype, out, name)


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
