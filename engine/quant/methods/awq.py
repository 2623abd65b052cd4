"""``+awq``: scale up the weights of channels with larger inputs.

AWQ (Lin et al. 2023, arXiv 2306.00978, equations 4 and 5): ``s = mean|x|^α``, with the α out of
twenty that changes the output on calibration inputs least. Scales are brought around 1 as in
``auto_scale_block`` of mit-han-lab's llm-awq, ``s / √(max s · min s)``, and α = 0, which leaves the
weights as they are, is among those tried: the error is never above that of rounding to nearest. The
reference compares the outputs of a module; here it is ``Σ tr(ΔW X Xᵀ ΔWᵀ)`` over the weights that
share the input, which needs no inputs, only their sum of products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.channel_scales import (
    Folded,
    check_group,
    fold_error,
    powers_of_two,
)

STEPS = 20
"""Exponents from 0 to .95 that are tried."""
LEAST = 1e-4
"""Scales below it count as this much before they are brought around 1."""


def awq_scale(mean: Tensor, exponent: float) -> Tensor:
    """``mean^α``, brought around 1, float32 ``[in]``; exactly 1 for an exponent of 0."""
    scale = mean.to(torch.float32).pow(exponent).clamp(min=LEAST)
    return scale / (scale.max() * scale.min()).sqrt()


def awq(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str = "weight",
    *,
    exact: bool = False,
) -> Folded:
    """The scale for weights ``[…, out, in]`` that share an input.

    Takes a float32 copy of one weight and of its rounded form at a time.

    Args:
        weights: The fold group; not modified.
        statistics: Of their input.
        fmt: The format they are to hold; of its methods ``+clip`` and ``+hqq`` are followed.
        scale_dtype: The dtype that scales are stored in.
        name: The fold group, for messages.
        exact: Whether scales must be powers of two, as for a layer that absorbs them.

    Raises:
        FormatError: No tokens were taken in, something is not finite or does not fit, the format
            cannot hold a weight, or a scale of rounding to nearest is too large for its dtype.
    """
    check_group(weights, statistics, name)
    mean = statistics.mean(name)
    found: Folded | None = None
    for step in range(STEPS):
        exponent = step / STEPS
        scale = awq_scale(mean, exponent)
        if exact:
            scale = powers_of_two(scale)
        try:
            error = fold_error(weights, statistics, scale, fmt, scale_dtype, name)
        except FormatError:
            if found is None:
                raise
            continue  # multiplied weights are beyond what scales can be stored
        if found is None:
            found = Folded(scale, 0.0, error, error)
        elif error < found.error:
            found = Folded(scale, exponent, error, found.plain)
    assert found is not None
    return found
