"""``int2`` to ``int8``: round to nearest, with one scale per group, channel or tensor.

The arithmetic is that of compressed-tensors in float32, which it equals bit for bit, but for
scales that vanish in 16 bits, where compressed-tensors divides by zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engine.quant.formats import Format
from engine.quant.quantized import Quantized, in_groups
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.scales import stored_scale


class Parameters(NamedTuple):
    """What maps the weights of a group to codes and back, ``[…, groups]`` each."""

    scale: Tensor
    """In the dtype it is stored in."""
    zero_point: Tensor | None
    """float32 integers; None if symmetric."""
    divisor: Tensor
    """float32: the stored scale, or infinity in a group that is stored as zeros."""


def code_range(bits: int) -> tuple[int, int]:
    """The least and the greatest signed code, both included."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantization_parameters(
    lo: Tensor, hi: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Parameters:
    """Scales and zero points for groups with weights from ``lo`` to ``hi``.

    ``scale = (hi − lo) / (2^bits − 1)`` and ``zero_point = round(−2^(bits−1) − lo / scale)``
    from the scale before it is rounded; symmetric ``max(−lo, hi) / ((2^bits − 1) / 2)``. This is
    ``calculate_qparams`` of compressed-tensors. A scale that is 0, before or after rounding to
    ``scale_dtype``, becomes `EMPTY_SCALE`, with zero point 0.

    Args:
        lo: Least weight of each group, float32; 0 counts as a weight of every group.
        hi: Greatest weight of each group, in the shape of ``lo``.
        fmt: An integer format.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for the error message.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    q_min, q_max = code_range(fmt.bits)
    # A tensor on the device: CUDA turns division by a Python number into a product, which differs.
    steps = torch.tensor(float(q_max - q_min), device=lo.device)
    zero_point = None
    if fmt.symmetric:
        scale = torch.maximum(-lo, hi) / (steps / 2)
    else:
        scale = (hi - lo) / steps
        zero_point = (q_min - lo / scale).clamp(q_min, q_max).round()
    stored, divisor = stored_scale(scale, scale_dtype, fmt, name)
    if zero_point is not None:
        zero_point = zero_point.masked_fill(divisor.isinf(), 0)
    return Parameters(stored, zero_point, divisor)


def quantize_integer(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Quantized:
    """Round a weight to the nearest codes of an integer format.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``, each expert on its own; not modified.
            Values that are not finite take no part in a range and get the code of 0.
        fmt: ``int2`` to ``int8``; methods are not looked at.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for the error message.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    weight = weight.detach()
    if weight.dim() == 3:
        parts = [quantize_integer(expert, fmt, scale_dtype, name) for expert in weight]
        points = [part.zero_point for part in parts if part.zero_point is not None]
        return Quantized(
            torch.stack([part.codes for part in parts]),
            torch.stack([part.scale for part in parts]),
            torch.stack(points) if points else None,
            fmt.group_size,
        )
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    found = []
    for rows, _, parameters, groups in _encoded(weight, fmt, scale_dtype, name):
        codes[rows] = groups.flatten(-2)[:, : weight.shape[1]].to(torch.int8)
        found.append(parameters)
    found = found[:1] if fmt.strategy == "tensor" else found
    points = [p.zero_point.to(torch.int8) for p in found if p.zero_point is not None]
    return Quantized(
        codes,
        torch.cat([p.scale for p in found]),
        torch.cat(points) if points else None,
        fmt.group_size,
    )


def write_dequantized(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, out: Tensor, name: str = "weight"
) -> None:
    """Write ``Ŵ`` of one weight ``[out, in]`` into ``out``, float32, a few rows at a time.

    Values that are not finite are copied. Raises as `quantize_integer` does.
    """
    for rows, broken, parameters, groups in _encoded(weight, fmt, scale_dtype, name):
        if parameters.zero_point is not None:
            groups.sub_(parameters.zero_point.unsqueeze(-1))
        groups.mul_(parameters.scale.to(torch.float32).unsqueeze(-1))
        approx = groups.flatten(-2)[:, : weight.shape[1]]
        if broken is not None:
            approx = torch.where(broken, weight[rows].to(torch.float32), approx)
        out[rows] = approx


def _encoded(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str
) -> Iterator[tuple[slice, Tensor | None, Parameters, Tensor]]:
    """Yield rows, which of their values are not finite, parameters, and float32 codes in groups."""
    q_min, q_max = code_range(fmt.bits)
    shared = None
    if fmt.strategy == "tensor":
        shared = quantization_parameters(*_tensor_range(weight), fmt, scale_dtype, name)
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        groups = in_groups(finite, fmt.group_size)
        parameters = shared or quantization_parameters(
            groups.amin(-1), groups.amax(-1), fmt, scale_dtype, name
        )
        codes = groups / parameters.divisor.unsqueeze(-1)
        if parameters.zero_point is not None:
            codes.add_(parameters.zero_point.unsqueeze(-1))
        yield rows, broken, parameters, codes.clamp_(q_min, q_max).round_()


def _tensor_range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest finite weight, ``[1, 1]`` each."""
    ends = [finite_and_broken(weight[rows])[0].aminmax() for rows in row_chunks(weight)]
    lo = torch.stack([end.min for end in ends]).amin()
    hi = torch.stack([end.max for end in ends]).amax()
    return lo.reshape(1, 1), hi.reshape(1, 1)
