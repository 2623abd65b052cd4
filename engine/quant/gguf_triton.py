"""The searches of `engine.quant.gguf_search` as Triton kernels: one launch instead of thousands.

A lane is a block of weights; each kernel does for its lanes what its namesake there does for all,
operation by operation in float32. Divisions are rounded correctly, and nothing is fused or summed
in another order: `enable_fp_fusion` is off at every launch. `engine.quant.gguf_gpu` runs a kernel
only where it gives the same bits as the search on the device at hand. Importing this module
imports Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 128
"""Blocks of weights that a program searches."""
SMALLEST = tl.constexpr(1e-15)


@triton.jit  # type: ignore[untyped-decorator]
def _even(x: Any) -> Any:
    """To the nearest integer, ties to even, of a number up to ±2^22; a zero keeps its sign."""
    found = (x + 12582912.0) - 12582912.0
    return tl.where(found == 0.0, x * 0.0, found)


@triton.jit  # type: ignore[untyped-decorator]
def _within(x: Any, low: Any, high: Any) -> Any:
    """Clamped; NaN stays."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(x: Any, low: Any, high: Any) -> Any:
    return _within(_even(_within(x, -4194304.0, 4194304.0)), low, high)


@triton.jit  # type: ignore[untyped-decorator]
def _peak(x: Any, at: Any, inside: Any, groups: Any, N: tl.constexpr) -> Any:
    """The number of the greatest magnitude, the first of several."""
    peak = tl.load(x + at, mask=inside, other=0.0)
    for i in range(1, N):
        value = tl.load(x + i * groups + at, mask=inside, other=0.0)
        further = (tl.abs(value) > tl.abs(peak)) | ((value != value) & (peak == peak))
        peak = tl.where(further, value, peak)
    return peak


@triton.jit  # type: ignore[untyped-decorator]
def _offsets_error(
    x: Any, w: Any, at: Any, inside: Any, groups: Any, inverse: Any, base: Any, scale: Any, lo: Any,
    N: tl.constexpr, TOP: tl.constexpr, ABSOLUTE: tl.constexpr,
) -> Any:  # fmt: skip
    error = tl.zeros_like(lo) * -1.0
    for i in range(N):
        value = tl.load(x + i * groups + at, mask=inside, other=0.0)
        weight = tl.load(w + i * groups + at, mask=inside, other=0.0)
        code = _rounded(inverse * (value - base), 0.0, TOP)
        gap = scale * code + lo - value
        gap = tl.abs(gap) if ABSOLUTE else gap * gap
        error = error + gap * weight
    return error


@triton.jit  # type: ignore[untyped-decorator]
def _offsets(
    x: Any, w: Any, candidates: Any, ends: Any, codes: Any, groups: Any,
    N: tl.constexpr, TOP: tl.constexpr, TRIED: tl.constexpr, ABSOLUTE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = at < groups
    lo = tl.load(x + at, mask=inside, other=0.0)
    hi = lo
    sum_w = tl.load(w + at, mask=inside, other=0.0)
    sum_x = sum_w * lo
    for i in range(1, N):
        value = tl.load(x + i * groups + at, mask=inside, other=0.0)
        weight = tl.load(w + i * groups + at, mask=inside, other=0.0)
        lo = tl.where(value < lo, value, lo)
        hi = tl.where(value > hi, value, hi)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    lo = tl.where(lo > 0.0, 0.0, lo)
    flat = hi <= lo
    top = tl.zeros_like(lo) + TOP
    inverse, base = tl.math.div_rn(top, hi - lo), lo
    scale = tl.math.div_rn(tl.zeros_like(lo) + 1.0, inverse)
    least = _offsets_error(x, w, at, inside, groups, inverse, base, scale, lo, N, TOP, ABSOLUTE)
    for k in range(TRIED):
        tried = tl.math.div_rn(tl.zeros_like(lo) + tl.load(candidates + k), hi - lo)
        sum_l = tl.zeros_like(lo) * -1.0
        sum_l2, sum_xl = sum_l, sum_l
        for i in range(N):
            value = tl.load(x + i * groups + at, mask=inside, other=0.0)
            weight = tl.load(w + i * groups + at, mask=inside, other=0.0)
            code = _rounded(tried * (value - lo), 0.0, TOP)
            weighted = weight * code
            sum_l = sum_l + weighted
            sum_l2 = sum_l2 + weighted * code
            sum_xl = sum_xl + weighted * value
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = tl.math.div_rn(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_lo = tl.math.div_rn(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = new_lo > 0.0
        new_lo = tl.where(positive, 0.0, new_lo)
        new_scale = tl.where(positive, tl.math.div_rn(sum_xl, sum_l2), new_scale)
        error = _offsets_error(
            x, w, at, inside, groups, tried, lo, new_scale, new_lo, N, TOP, ABSOLUTE
        )
        better = (determinant > 0.0) & (error < least)
        least = tl.where(better, error, least)
        inverse, base = tl.where(better, tried, inverse), tl.where(better, lo, base)
        scale, lo = tl.where(better, new_scale, scale), tl.where(better, new_lo, lo)
    for i in range(N):
        value = tl.load(x + i * groups + at, mask=inside, other=0.0)
        code = _rounded(inverse * (value - base), 0.0, TOP)
        tl.store(codes + i * groups + at, tl.where(flat, 0.0, code), mask=inside)
    tl.store(ends + at, tl.where(flat, 0.0, scale), mask=inside)
    tl.store(ends + groups + at, -lo, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _symmetric(
    x: Any, w: Any, candidates: Any, scales: Any, codes: Any, groups: Any,
    N: tl.constexpr, HALF: tl.constexpr, TRIED: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = at < groups
    peak = _peak(x, at, inside, groups, N)
    empty = tl.abs(peak) < SMALLEST
    best, scale, gain = peak, peak, peak
    for k in range(TRIED):
        tried = tl.math.div_rn(tl.zeros_like(peak) + tl.load(candidates + k), peak)
        sum_lx = tl.abs(tl.zeros_like(peak)) * -1.0
        sum_l2 = sum_lx
        for i in range(N):
            value = tl.load(x + i * groups + at, mask=inside, other=0.0)
            weight = tl.load(w + i * groups + at, mask=inside, other=0.0)
            code = _rounded(tried * value, -HALF, HALF - 1.0)
            sum_lx = sum_lx + weight * value * code
            sum_l2 = sum_l2 + weight * code * code
        found = tl.math.div_rn(sum_lx, sum_l2)
        if k == 0:
            scale = tl.where(sum_l2 == 0.0, 0.0, found)
            gain, best = scale * sum_lx, tried
        else:
            better = (sum_l2 > 0.0) & (sum_lx * sum_lx > gain * sum_l2)
            scale = tl.where(better, found, scale)
            gain = tl.where(better, scale * sum_lx, gain)
            best = tl.where(better, tried, best)
    for i in range(N):
        value = tl.load(x + i * groups + at, mask=inside, other=0.0)
        code = _rounded(best * value, -HALF, HALF - 1.0) + HALF
        tl.store(codes + i * groups + at, tl.where(empty, 0.0, code), mask=inside)
    tl.store(scales + at, tl.where(empty, 0.0, scale), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _refined(
    x: Any, scales: Any, codes: Any, groups: Any,
    N: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = at < groups
    peak = _peak(x, at, inside, groups, N)
    empty = tl.abs(peak) < SMALLEST
    inverse = tl.math.div_rn(tl.zeros_like(peak) - HALF, peak)
    sum_lx = tl.zeros_like(peak) * -1.0
    sum_l2 = sum_lx
    for i in range(N):
        value = tl.load(x + i * groups + at, mask=inside, other=0.0)
        code = _rounded(inverse * value, -HALF, HALF - 1.0)
        tl.store(codes + i * groups + at, code, mask=inside)
        weight = value * value
        sum_lx = sum_lx + weight * value * code
        sum_l2 = sum_l2 + weight * code * code
    for _ in range(5):
        for i in range(N):
            value = tl.load(x + i * groups + at, mask=inside, other=0.0)
            code = tl.load(codes + i * groups + at, mask=inside, other=0.0)
            weight = value * value
            weighted = weight * value
            rest_lx = sum_lx - weighted * code
            rest_l2 = sum_l2 - weight * code * code
            new = _rounded(tl.math.div_rn(value * rest_l2, rest_lx), -HALF, HALF - 1.0)
            new_lx = rest_lx + weighted * new
            new_l2 = rest_l2 + weight * new * new
            better = (rest_lx > 0.0) & (new != code) & (new_l2 > 0.0)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            tl.store(codes + i * groups + at, tl.where(better, new, code), mask=inside)
            sum_lx, sum_l2 = tl.where(better, new_lx, sum_lx), tl.where(better, new_l2, sum_l2)
    scale = tl.where(sum_l2 > 0.0, tl.math.div_rn(sum_lx, sum_l2), 0.0)
    tl.store(scales + at, tl.where(empty, 0.0, scale), mask=inside)
    for i in range(N):
        code = tl.load(codes + i * groups + at, mask=inside, other=0.0) + HALF
        tl.store(codes + i * groups + at, tl.where(empty, 0.0, code), mask=inside)


def fit_offsets(
    x: Tensor, weights: Tensor, top: int, candidates: Sequence[float], absolute: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, minima and codes; see there."""
    n, groups = x.shape
    ends, codes = x.new_empty(2, groups), torch.empty_like(x)
    _offsets[(triton.cdiv(groups, LANES),)](
        x, weights, _on(x.device, tuple(candidates)), ends, codes, groups,
        N=n, TOP=float(top), TRIED=len(candidates), ABSOLUTE=absolute, LANES=LANES,
        enable_fp_fusion=False,
    )  # fmt: skip
    return ends[0], ends[1], codes


def fit_symmetric(
    x: Tensor, weights: Tensor, half: int, candidates: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scales and codes; see there."""
    n, groups = x.shape
    scales, codes = x.new_empty(groups), torch.empty_like(x)
    _symmetric[(triton.cdiv(groups, LANES),)](
        x, weights, _on(x.device, tuple(candidates)), scales, codes, groups,
        N=n, HALF=float(half), TRIED=len(candidates), LANES=LANES, enable_fp_fusion=False,
    )  # fmt: skip
    return scales, codes


def refine_symmetric(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scales and codes; see there."""
    n, groups = x.shape
    scales, codes = x.new_empty(groups), torch.empty_like(x)
    _refined[(triton.cdiv(groups, LANES),)](
        x, scales, codes, groups,
        N=n, HALF=float(half), LANES=LANES, enable_fp_fusion=False,
    )  # fmt: skip
    return scales, codes


@cache
def _on(device: torch.device, numbers: tuple[float, ...]) -> Tensor:
    """Candidates on a device, copied once."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)
