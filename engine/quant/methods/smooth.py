"""``+smooth.5``: move outliers of the inputs into the weights.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, equation 4):
``s_j = max|x_j|^α / max|w_j|^(1−α)``, as ``smooth_ln_fcs`` of mit-han-lab's smoothquant has it, α
being the number behind the name. It pays where inputs are rounded too (``+a8``); with weights alone
it may not. `smooth` compares it with no scale at all by the error of the output, and takes the
better one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.a8 import quantized_tokens, static_scale
from engine.quant.methods.channel_scales import (
    Folded,
    check_group,
    column_maximum,
    fold_error,
    folded,
    only_weights,
    powers_of_two,
)
from engine.quant.quantize import dequantized
from engine.quant.rows import matrices

LEAST = 1e-5
"""Magnitudes, and scales, below it count as this much."""


def smooth_scale(maximum: Tensor, columns: Tensor, strength: float) -> Tensor:
    """``max|x|^α / max|w|^(1−α)``, float32 ``[in]``; 1 for a channel that is always 0.

    Args:
        maximum: Greatest ``|x|`` of every channel.
        columns: Greatest ``|w|`` of every channel over all weights that share the input.
        strength: α, from 0 to 1.
    """
    weight = columns.to(torch.float32).clamp(min=LEAST)
    scale = maximum.to(torch.float32).pow(strength) / weight.pow(1 - strength)
    return scale.clamp(min=LEAST).masked_fill(maximum == 0, 1)


def smooth(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    fmt: Format,
    scale_dtype: torch.dtype,
    inputs: Tensor | None = None,
    name: str = "weight",
    *,
    exact: bool = False,
) -> Folded:
    """The scale for weights ``[…, out, in]`` that share an input, or 1 where that loses less.

    Args:
        weights: The fold group; not modified.
        statistics: Of their input.
        fmt: A format with ``+smooth``; with ``+a8`` inputs are rounded as well.
        scale_dtype: The dtype that scales are stored in.
        inputs: Some of the tokens ``[…, in]``; needed with ``+a8``, where sums do not tell what
            rounding every token costs. Errors are over these then.
        name: The fold group, for messages.
        exact: Whether scales must be powers of two, as for a layer that absorbs them.

    Raises:
        FormatError: No tokens were taken in, something is not finite or does not fit, ``+a8``
            has no inputs, or a scale is too large for its dtype.
    """
    check_group(weights, statistics, name)
    strength = next((m.value for m in fmt.methods if m.name == "smooth"), None)
    if strength is None:
        raise FormatError(f"{name}: {fmt} has no '+smooth'")
    a8 = next((method for method in fmt.methods if method.name == "a8"), None)
    if a8 is not None and (inputs is None or not inputs.numel()):
        raise FormatError(
            f"{name}: '+smooth' with '+a8' is judged on calibration inputs, none came"
        )
    tokens = None if inputs is None or a8 is None else inputs.detach().reshape(-1, statistics.width)
    static = a8 is not None and ("static", True) in a8.options

    def error(scale: Tensor) -> float:
        if tokens is None:
            return fold_error(weights, statistics, scale, fmt, scale_dtype, name)
        fixed = static_scale(statistics.maximum / scale) if static else None
        return _rounded_error(
            weights, tokens.to(torch.float32), scale, fmt, scale_dtype, fixed, name
        )

    scale = smooth_scale(statistics.maximum, column_maximum(weights), strength)
    if exact:
        scale = powers_of_two(scale)
    one = torch.ones_like(scale)
    plain = error(one)
    try:
        smoothed = error(scale)
    except FormatError:  # multiplied weights are beyond what scales can be stored
        smoothed = math.inf
    if smoothed < plain:
        return Folded(scale, strength, smoothed, plain)
    return Folded(one, 0.0, plain, plain)


def _rounded_error(
    weights: Sequence[Tensor],
    tokens: Tensor,
    scale: Tensor,
    fmt: Format,
    scale_dtype: torch.dtype,
    fixed: Tensor | None,
    name: str,
) -> float:
    """``Σ ‖x Wᵀ − Q(x / s) Q(W · diag(s))ᵀ‖²``, with 8-bit inputs."""
    rounded = quantized_tokens(tokens / scale, fixed)
    total = 0.0
    for weight in weights:
        approx = dequantized(folded(weight, scale), only_weights(fmt), scale_dtype, name)
        for expert, found in zip(matrices(weight.detach()), matrices(approx), strict=True):
            difference = rounded @ found.T - tokens @ expert.to(torch.float32).T
            total += float(difference.square_().sum(dtype=torch.float64))
    return total
