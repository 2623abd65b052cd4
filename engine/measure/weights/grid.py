"""The grid of a format in one layer: the values its weights can take, drawn with the histogram.

Only one group is looked at, and only its range: the format is applied to a ramp of that range, so
nothing of the layer's size is ever quantised. That is exact for formats whose values follow from
the range of a group: integer and small float formats, absmax codebooks, the first types of GGUF.
A type whose scales are searched for weight by weight (K-quants, ``iq4``), a codebook fitted to the
weights, a lattice of vectors, or a method that moves scales by calibration has no such grid.

A format symmetric about 0 has all its codes on the grid, including those that the typical group
does not reach: its scale comes from the largest magnitude, whatever its sign.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

import msgspec
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format, why_not_built
from engine.formats.storage import why_not_held
from engine.quant.arithmetic import Levels, arithmetic_of
from engine.quant.quantize import dequantized
from engine.quant.rows import row_chunks

LEAST_GROUP = 4
"""Weights that a group of the ramp needs: both ends, 0, and one that moves between them."""

MOST_LEVELS = 64
"""More levels than these cannot be told apart when drawn."""

SAMPLE_ROWS = 256
"""Rows, evenly spaced, that stand for all others in finding a typical group."""

RAMP = 4
"""Points of the ramp for each code: every level is hit, wherever its edges lie."""


class Grid(msgspec.Struct, frozen=True):
    """Values of a typical group, ascending, and the median distance between neighbours."""

    levels: tuple[float, ...] = ()
    """Empty if there are more than `MOST_LEVELS`, or none are known."""
    step: float = math.nan


def format_grid(weight: Tensor, format: Format, scale_dtype: torch.dtype) -> Grid:
    """The grid of the typical group of ``weight``: the one with the median largest magnitude.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``, of which the first expert that is finite
            counts.
        format: one that is not built, or cannot hold the shape, has no grid; nor has a kept one,
            or one whose values do not follow from a range.
        scale_dtype: the dtype that scales are stored in.
    """
    if format.kept or why_not_built(format) or why_not_held(format, weight.shape):
        return Grid()
    rule = arithmetic_of(format).levels(format)
    if format.methods or rule is None:
        return Grid()
    if (format.group_size or weight.shape[-1]) < LEAST_GROUP:
        return Grid()
    matrix = _matrix(weight)
    span = None if matrix is None else typical_range(matrix, format)
    if matrix is None or span is None:
        return Grid()
    try:
        levels = _levels(matrix, span, format, rule, scale_dtype)
    except FormatError:  # a scale that its dtype cannot hold: triage reports it
        return Grid()
    step = median(high - low for low, high in pairwise(levels)) if len(levels) > 1 else math.nan
    return Grid(tuple(levels) if len(levels) <= MOST_LEVELS else (), step)


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


def _levels(
    matrix: Tensor,
    span: tuple[float, float],
    format: Format,
    rule: Levels,
    scale_dtype: torch.dtype,
) -> list[float]:
    """The values of a group with this range, ascending."""
    low, high = span
    if format.symmetric:
        # The end that sets the scale first: `q4_0` gives its sign a code more.
        low, high = (high, -high) if high > -low else (low, -low)
    groups = ramp = _ramp(low, high, format, matrix.shape[-1])
    if rule.beside_greatest:
        # Its scales are rounded beside the tensor's greatest, which another group may hold.
        loudest = torch.zeros_like(ramp[:1])
        loudest[0, 0] = _greatest(matrix)
        groups = torch.cat([ramp, loudest])
    approx = dequantized(groups, format, scale_dtype)[: len(ramp)]
    found = sorted(set(approx.flatten().tolist()))
    unit = min((level for level in found if level > 0), default=0.0)
    if not rule.codes or not unit:
        return found
    return sorted(set((torch.tensor(rule.codes) * unit).tolist()))


def _greatest(matrix: Tensor) -> float:
    return max(float(_of_finite(matrix[rows]).abs().amax()) for rows in row_chunks(matrix))


def _ramp(low: float, high: float, format: Format, width: int) -> Tensor:
    """Groups that all span from ``low`` to ``high``; 0, and a fine ramp from one to the other."""
    size = format.group_size or min(width, 1024)
    inner = max(1, size - 3)
    count = -(-(RAMP << format.bits) // inner)
    steps = torch.linspace(low, high, count * inner).reshape(inner, count).T
    ends = torch.tensor([low, high, 0.0]).expand(count, 3)
    return torch.cat([ends, steps], dim=1)[:, : max(size, 2)].contiguous()
