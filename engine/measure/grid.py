"""The values a format gives to weights of one layer: what is drawn below its histogram.

Only one group is looked at, and only its range: the format is applied to a ramp of that range, so
nothing of the layer's size is ever quantised. That is exact for formats whose values follow from
the range of a group (integer, float, absmax codebooks, GGUF's legacy types); what searches among
the weights for its values (a fitted codebook, a K-quant, a method) has no such grid.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

import msgspec
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.quant import Format, dequantized, why_not_built, why_not_held
from engine.quant.rows import row_chunks

MOST_LEVELS = 64
"""More levels than these cannot be told apart when drawn."""

SAMPLE_ROWS = 256
"""Rows, evenly spaced, that stand for all others in finding a typical group."""

RAMP = 4
"""Points of the ramp for each code: every level is hit, wherever its edges lie."""


class Grid(msgspec.Struct, frozen=True):
    """Values of a typical group, ascending, and the median distance of two neighbours."""

    levels: tuple[float, ...] = ()
    """Empty where there are more than `MOST_LEVELS`, or none are known."""
    step: float = math.nan


def format_grid(weight: Tensor, format: Format, scale_dtype: torch.dtype) -> Grid:
    """The grid of the typical group of ``weight``: the one with the median largest magnitude.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``, of which the first expert that is finite
            counts.
        format: one that is not built, or cannot hold the shape, has no grid; a kept one neither,
            nor one that searches among the weights for its values.
        scale_dtype: the dtype that scales are stored in.
    """
    if not _follows_from_range(format) or why_not_held(format, weight.shape):
        return Grid()
    matrix = _matrix(weight)
    span = None if matrix is None else typical_range(matrix, format)
    if span is None:
        return Grid()
    try:
        approx = dequantized(_ramp(*span, format, weight.shape[-1]), format, scale_dtype)
    except FormatError:  # a scale that its dtype cannot hold: triage says so
        return Grid()
    levels = sorted(set(approx.flatten().tolist()))
    step = median(high - low for low, high in pairwise(levels)) if len(levels) > 1 else math.nan
    return Grid(tuple(levels) if len(levels) <= MOST_LEVELS else (), step)


def _follows_from_range(format: Format) -> bool:
    """Whether the values of a group are known from its range, without the weights within."""
    if format.kept or format.methods or why_not_built(format):
        return False
    if format.family == "gguf":  # the others search for their scales
        return format.name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
    return format.family != "codebook" or format.name in ("nf4", "fp4")


def _matrix(weight: Tensor) -> Tensor | None:
    """The weight, or its first expert of finite weights; None where there is no such expert."""
    if weight.dim() == 2:
        return weight
    return next((expert for expert in weight if bool(expert.isfinite().all())), None)


def typical_range(matrix: Tensor, format: Format) -> tuple[float, float] | None:
    """Least and greatest weight of the group with the median largest magnitude, 0 among them.

    Weights that are not finite count as 0; groups of nothing but zeros do not count. None where
    all do not.
    """
    if format.strategy == "tensor":
        ends = [_of_finite(matrix[rows]).aminmax() for rows in row_chunks(matrix)]
        groups = torch.tensor([[float(end.min), float(end.max)] for end in ends]).reshape(1, -1)
    else:
        rows = matrix[:: max(1, -(-len(matrix) // SAMPLE_ROWS))]
        finite = _of_finite(rows)
        size = format.group_size or finite.shape[-1]
        whole = finite.shape[-1] // size * size
        # A shorter group at the end of a row is not typical, unless it is all there is.
        groups = finite[:, : whole or None].reshape(-1, size if whole else finite.shape[-1])
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    reach = torch.maximum(-low, high)
    living = torch.nonzero(reach).flatten()
    if len(living) == 0:
        return None
    middle = living[reach[living].argsort()[len(living) // 2]]
    return float(low[middle]), float(high[middle])


def _of_finite(rows: Tensor) -> Tensor:
    return rows.to(torch.float32).nan_to_num(0.0, posinf=0.0, neginf=0.0)


def _ramp(low: float, high: float, format: Format, width: int) -> Tensor:
    """Groups that all span ``[low, high]``, between them a fine ramp from one to the other."""
    size = format.group_size or min(width, 1024)
    inner = max(1, size - 2)
    count = -(-(RAMP << format.bits) // inner)
    steps = torch.linspace(low, high, count * inner).reshape(inner, count).T
    ends = torch.tensor([low, high]).expand(count, 2)
    return torch.cat([steps, ends], dim=1)[:, -max(size, 2) :].contiguous()
