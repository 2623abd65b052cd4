"""Errors of a weight in several group sizes and clipped ranges, from one pass compiled by numba.

The arithmetic is that of `engine.quant.integer`, operation by operation in float32: ``Ŵ`` is the
same to the last bit. Sums of squares are in float32 over `RUN` weights, and in float64 from there.

Importing this module imports numba; nothing is compiled before the first call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.compiling import compiled, greatest, least
from engine.measure.weights.fused_kernels import find_parameters, ranges, round_to_grid

float32, float64 = np.float32, np.float64

RUN = 128
"""Weights whose squared errors are summed in float32."""


@compiled(reordered=True)
def _noise(x: Any, approx: Any) -> float:
    """Sum of squares of ``Ŵ − W``."""
    total = 0.0
    for start in range(0, x.size, RUN):
        part, near = x[start : start + RUN], approx[start : start + RUN]
        run = float32(0.0)
        for j in range(part.size):
            gap = near[j] - part[j]
            run += gap * gap
        total += float64(run)
    return total


@compiled(reordered=True)
def _split(x: Any, approx: Any, low: Any, high: Any, sums: Any) -> None:
    """Add squares of ``Ŵ − W`` beyond a range and within it, and how many are beyond."""
    for start in range(0, x.size, RUN):
        part, near = x[start : start + RUN], approx[start : start + RUN]
        run = beyond = count = float32(0.0)
        for j in range(part.size):
            gap = near[j] - part[j]
            out = float32(1.0) if part[j] < low or part[j] > high else float32(0.0)
            square = gap * gap
            run += square
            beyond += square * out
            count += out
        sums[0] += float64(beyond)
        sums[1] += float64(run) - float64(beyond)
        sums[2] += float64(count)


@compiled()
def _narrowed(
    lo: Any, hi: Any, each: int, ratio: Any, symmetric: bool, low: Any, high: Any
) -> None:
    """Ranges of groups of ``each`` parts, by a ratio of the whole; 0 counts as a weight of each."""
    for g in range(low.size):
        a = b = float32(0.0)
        for i in range(g * each, min((g + 1) * each, lo.size)):
            a, b = least(lo[i], a), greatest(hi[i], b)
        if symmetric:
            b = greatest(-a, b)
            a = -b
        low[g], high[g] = a * ratio, b * ratio


@compiled(entry=True)
def pass_over(
    x: Any,
    base: int,
    sizes: Any,
    size: int,
    ratios: Any,
    bits: int,
    symmetric: bool,
    brain: bool,
    room: Any,
    approx: Any,
    noise: Any,
    clips: Any,
) -> int:
    """Pass over finite rows once; returns how many rows have a scale that overflows.

    Args:
        x: float32 ``[rows, width]``.
        base: divides every group size below the width.
        sizes: int64 ``[n]``: group sizes, at most the width.
        size: group size whose ranges are clipped.
        ratios: float32 ``[m]``.
        bits, symmetric: of the codes.
        brain: whether scales are stored in bfloat16, not float16.
        room: float32 ``[7, ⌈width / base⌉]``, scratch.
        approx: float32 ``[width]``, scratch.
        noise: float64 ``[n]``: receives squares of ``Ŵ − W`` for each group size.
        clips: float64 ``[m, 3]``: receives, for each ratio, squares beyond the range, squares
            within it, and how many weights are beyond it.
    """
    ends = float32(-(1 << (bits - 1))), float32((1 << (bits - 1)) - 1)
    width, over = x.shape[1], 0
    lo, hi, found = room[0], room[1], room[2:5]
    for i in range(x.shape[0]):
        row, bad = x[i], False
        ranges(row, base, lo, hi)
        for k in range(sizes.size):
            groups = (width + sizes[k] - 1) // sizes[k]
            each = (sizes[k] + base - 1) // base
            use = found[:, :groups]
            bad |= find_parameters(lo, hi, each, symmetric, ends, brain, use)
            round_to_grid(row, sizes[k], ends, use, approx)
            noise[k] += _noise(row, approx)
        groups, each = (width + size - 1) // size, (size + base - 1) // base
        low, high, use = room[5, :groups], room[6, :groups], found[:, :groups]
        for k in range(ratios.size):
            _narrowed(lo, hi, each, ratios[k], symmetric, low, high)
            find_parameters(low, high, 1, symmetric, ends, brain, use)
            round_to_grid(row, size, ends, use, approx)
            for g in range(groups):
                start, stop = g * size, min((g + 1) * size, width)
                _split(row[start:stop], approx[start:stop], low[g], high[g], clips[k])
        over += 1 if bad else 0
    return over
