"""Scaling input channels of weights that share an input, and its effect on their outputs.

``x Wᵀ = (x / s)(W · diag(s))ᵀ``: the operation before absorbs ``1 / s``, and the weights are
rounded after they were multiplied. `engine.quant.methods.awq` and `engine.quant.methods.smooth`
choose ``s``; the caller that has the model folds it.

Where the operation before is a layer, which is rounded as well or stored in 16 bits, ``s`` is made
of powers of two: then dividing its rows commutes with rounding them, so that its codes, and what it
loses, are the same with and without the scale. A norm is rounded after the division, and its
rounding is part of what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.input_statistics import InputStatistics, output_error
from engine.quant.quantize import dequantized
from engine.quant.rows import matrices, row_chunks


@dataclass(frozen=True, eq=False)
class Folded:
    """The scale chosen for a fold group."""

    scale: Tensor
    """``s``, float32 ``[in]``: weights are multiplied by it, inputs divided."""
    strength: float
    """Its exponent; 0 if the scale is 1 throughout."""
    error: float
    """The squared output error over the calibration tokens, summed over the weights."""
    plain: float
    """The same without a scale."""


def folded(weight: Tensor, scale: Tensor) -> Tensor:
    """``W · diag(s)`` in float32, of ``[out, in]`` or ``[experts, out, in]``."""
    return weight.detach().to(torch.float32) * scale


def powers_of_two(scale: Tensor) -> Tensor:
    """The nearest powers of two, in the logarithm, of positive scales, float32."""
    mantissa, exponent = torch.frexp(scale.to(torch.float32))  # scale = mantissa · 2^exponent
    exponent = exponent - (mantissa < math.sqrt(0.5)).int()  # the mantissa is at least 1/2
    return ((exponent + 127).clamp(1, 254) << 23).view(torch.float32)


def only_weights(fmt: Format) -> Format:
    """The format that scaled weights are rounded to: only methods that need no inputs."""
    stays = ("hadamard", "clip", "hqq")
    return msgspec.structs.replace(
        fmt, methods=tuple(method for method in fmt.methods if method.name in stays)
    )


def unfolded(
    weight: Tensor, scale: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str
) -> Tensor:
    """``Q(W · diag(s)) · diag(s)⁻¹``: rounded, then scaled back for the original inputs."""
    return dequantized(folded(weight, scale), only_weights(fmt), scale_dtype, name) / scale


def fold_error(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    scale: Tensor,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str,
) -> float:
    """``Σ tr(ΔW X Xᵀ ΔWᵀ)`` over the weights, with ``ΔW`` as `unfolded` leaves it."""
    total = 0.0
    for weight in weights:
        approx = unfolded(weight, scale, fmt, scale_dtype, name)
        for expert, found in zip(matrices(weight.detach()), matrices(approx), strict=True):
            total += output_error(found - expert.to(torch.float32), statistics.gram)
    return total


def check_group(weights: Sequence[Tensor], statistics: InputStatistics, name: str) -> None:
    """Check that weights and statistics match and are finite.

    Raises:
        FormatError: There is no weight, one has another width, or something is not finite.
    """
    if not weights:
        raise FormatError(f"{name}: a fold group needs at least one weight")
    for weight in weights:
        if weight.dim() not in (2, 3):
            raise FormatError(f"{name}: a weight must be [out, in], not {list(weight.shape)}")
        statistics.check(name, weight.shape[-1])
        for matrix in matrices(weight.detach()):
            if not all(bool(matrix[rows].isfinite().all()) for rows in row_chunks(matrix)):
                raise FormatError(f"{name}: some of its weights are NaN or infinite")


def column_maximum(weights: Sequence[Tensor]) -> Tensor:
    """The greatest ``|w|`` of every input channel over all weights, float32 ``[in]``."""
    parts = [
        matrix[rows].to(torch.float32).abs().amax(0)
        for weight in weights
        for matrix in matrices(weight.detach())
        for rows in row_chunks(matrix)
    ]
    return torch.stack(parts).amax(0)
