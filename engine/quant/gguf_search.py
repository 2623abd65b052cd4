"""The searches of llama.cpp for the scales of GGUF blocks, many blocks at a time.

After ``ggml-quants.c``: each function names the C function that it equals, and works in float32 in
the same order, sums included, so that codes come out equal bit for bit. A tensor ``[n, blocks]``
holds ``n`` weights of a block in its rows: loops run over the weights of a block and over
candidates, never over blocks. `engine.quant.gguf_compiled` does the same faster on a
processor, `engine.quant.gguf_gpu` on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.quant import gguf_gpu

SMALLEST = 1e-15
"""A block whose weights are all nearer to 0 than this is all zeros (``GROUP_MAX_EPS``)."""


class Offsets(NamedTuple):
    """Scales and minima: ``w ≈ scale · code − minimum``."""

    scale: Tensor
    minimum: Tensor
    codes: Tensor
    """``[n, blocks]``, float32 integers from 0 to ``top``."""


class Symmetric(NamedTuple):
    """Scales without minima: ``w ≈ scale · (code − half)``."""

    scale: Tensor
    codes: Tensor
    """``[n, blocks]``, float32 integers from 0 to ``2 · half − 1``."""


def total(terms: Tensor, dim: int = 0) -> Tensor:
    """The sum over a dimension, one term after another as a loop in C adds them."""
    first, *rest = terms.unbind(dim)
    found = first.clone()
    for term in rest:
        found += term
    return found


def quotient(number: float, tensor: Tensor) -> Tensor:
    """``number / tensor``, rounded once: PyTorch multiplies a number by the reciprocal instead."""
    return torch.tensor(number, dtype=torch.float32, device=tensor.device) / tensor


def root(numbers: Tensor) -> Tensor:
    """The square root, rounded once: that of PyTorch in float32 may be off by one bit on a CPU."""
    return numbers.to(torch.float64).sqrt().to(torch.float32)


def candidates(start: float, step: float, top: int, indices: Iterable[int]) -> list[float]:
    """``start + step · i + top``, each rounded to float32 as C works them out."""
    first, each = torch.tensor(start), torch.tensor(step)
    return [float(first + each * i + top) for i in indices]


def symmetric_candidates(half: int) -> list[float]:
    """What `fit_symmetric` divides by the peak of a block for an inverse scale."""
    return [-half, *(-each for each in candidates(0, 0.1, half, [i for i in range(-9, 10) if i]))]


def fit_offsets(
    x: Tensor, weights: Tensor, top: int, start: float, step: float, steps: int, absolute: bool
) -> Offsets:
    """Scale and minimum of least weighted error (``make_qkx2_quants``, ``make_qkx3_quants``).

    For ``steps + 1`` candidates of the inverse scale, codes are rounded, and scale and minimum come
    from them by weighted least squares.

    Args:
        x: ``[n, blocks]``.
        weights: Of the errors, in the shape of ``x``.
        top: The greatest code.
        start, step, steps: The candidates are ``(start + step · i + top) / (max − min)``.
        absolute: Whether errors are compared by magnitude instead of by square.
    """
    tried = tuple(candidates(start, step, top, range(steps + 1)))
    return Offsets(
        *gguf_gpu.searched("fit_offsets", _fit_offsets, x, weights, top, tried, absolute)
    )


def _fit_offsets(
    x: Tensor, weights: Tensor, top: int, numbers: Sequence[float], absolute: bool
) -> Offsets:
    lo = x.gather(0, x.argmin(0, keepdim=True))[0].clamp(max=0)  # of zeros, the first one's sign
    hi = x.amax(0)
    flat = hi <= lo
    sum_w, sum_x = total(weights), total(weights * x)
    inverse, base = quotient(top, hi - lo), lo
    scale = quotient(1, inverse)
    codes = (inverse * (x - base)).round_().clamp_(0, top)
    least = _weighted_error(x, weights, scale, lo, codes, absolute)
    terms = x.new_empty(3, *x.shape)
    for candidate in numbers:
        tried = quotient(candidate, hi - lo)
        codes = (tried * (x - lo)).round_().clamp_(0, top)
        torch.mul(weights, codes, out=terms[0])
        torch.mul(terms[0], codes, out=terms[1])
        torch.mul(terms[0], x, out=terms[2])
        sum_l, sum_l2, sum_xl = total(terms, dim=1)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_lo = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = new_lo > 0
        new_lo = new_lo.masked_fill(positive, 0)
        new_scale = torch.where(positive, sum_xl / sum_l2, new_scale)
        error = _weighted_error(x, weights, new_scale, new_lo, codes, absolute)
        better = (determinant > 0) & (error < least)
        least = torch.where(better, error, least)
        inverse, base = torch.where(better, tried, inverse), torch.where(better, lo, base)
        scale, lo = torch.where(better, new_scale, scale), torch.where(better, new_lo, lo)
    codes = (inverse * (x - base)).round_().clamp_(0, top)
    return Offsets(scale.masked_fill(flat, 0), -lo, codes.masked_fill(flat, 0))


def fit_symmetric(x: Tensor, weights: Tensor, half: int) -> Symmetric:
    """Scale of least weighted squared error (``make_qx_quants`` with ``rmse_type`` 1).

    Args:
        x: ``[n, blocks]``.
        weights: Of the squared errors, in the shape of ``x``.
        half: Codes less ``half`` run from ``−half`` to ``half − 1``; the weight of the greatest
            magnitude starts at ``−half``.
    """
    numbers = tuple(symmetric_candidates(half))
    return Symmetric(*gguf_gpu.searched("fit_symmetric", _fit_symmetric, x, weights, half, numbers))


def _fit_symmetric(x: Tensor, weights: Tensor, half: int, numbers: Sequence[float]) -> Symmetric:
    peak = _peak(x)
    empty = peak.abs() < SMALLEST
    weighted = weights * x

    def sums(inverse: Tensor) -> tuple[Tensor, Tensor]:
        codes = (inverse * x).round_().clamp_(-half, half - 1)
        return total(weighted * codes), total(weights * codes * codes)

    first, *others = numbers
    best = quotient(first, peak)
    sum_lx, sum_l2 = sums(best)
    scale = torch.where(sum_l2 == 0, 0, sum_lx / sum_l2)
    gain = scale * sum_lx
    for candidate in others:
        tried = quotient(candidate, peak)
        sum_lx, sum_l2 = sums(tried)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > gain * sum_l2)
        scale = torch.where(better, sum_lx / sum_l2, scale)
        gain = torch.where(better, scale * sum_lx, gain)
        best = torch.where(better, tried, best)
    codes = (best * x).round_().clamp_(-half, half - 1) + half
    return Symmetric(scale.masked_fill(empty, 0), codes.masked_fill(empty, 0))


def refine_symmetric(x: Tensor, half: int) -> Symmetric:
    """Scale of least squared error weighted by ``x²`` (``make_q3_quants``).

    From rounded codes on, each code in turn moves to where the error is least, five times.
    """
    return Symmetric(*gguf_gpu.searched("refine_symmetric", _refine_symmetric, x, half))


def _refine_symmetric(x: Tensor, half: int) -> Symmetric:
    peak = _peak(x)
    empty = peak.abs() < SMALLEST
    weights = x * x
    weighted = weights * x
    codes = (quotient(-half, peak) * x).round_().clamp_(-half, half - 1)
    sum_lx, sum_l2 = total(weighted * codes), total(weights * codes * codes)
    for _ in range(5):
        changed = torch.zeros((), dtype=torch.bool, device=x.device)  # read once a round
        for i in range(len(x)):
            code, weight = codes[i], weights[i]
            rest_lx = sum_lx - weighted[i] * code
            rest_l2 = sum_l2 - weight * code * code
            new = (x[i] * rest_l2 / rest_lx).round_().clamp_(-half, half - 1)
            new_lx = rest_lx + weighted[i] * new
            new_l2 = rest_l2 + weight * new * new
            better = (rest_lx > 0) & (new != code) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = torch.where(better, new, code)
            sum_lx = torch.where(better, new_lx, sum_lx)
            sum_l2 = torch.where(better, new_l2, sum_l2)
            changed |= better.any()
        if not bool(changed):
            break
    scale = torch.where(sum_l2 > 0, sum_lx / sum_l2, 0).masked_fill(empty, 0)
    return Symmetric(scale, (codes + half).masked_fill(empty, 0))


def fit_positive(x: Tensor, weights: Tensor, top: int) -> Symmetric:
    """Scale and codes ``0…top`` of numbers that are not negative (``make_qp_quants``).

    It is for the scales and minima of a block where there is an importance matrix, and for the
    magnitudes of ``iq2_xxs``: nine candidates, then each code in turn moves to where the error is
    least, five times. A code is a byte there: that of a negative number counts as 256 more.
    """
    greatest = x.amax(0).clamp(min=0)
    empty = greatest < SMALLEST
    best = quotient(top, greatest)
    least = _plain_error(x, weights, quotient(1, best), _in_a_byte((best * x).round_()))
    for candidate in candidates(0, 0.1, top, [i for i in range(-4, 5) if i]):
        tried = quotient(candidate, greatest)
        codes = (tried * x).round_().clamp_(max=top)
        error = _plain_error(x, weights, quotient(1, tried), codes)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, tried, best)
    codes = (best * x).round_().clamp_(max=top)
    weighted = weights * x
    sum_lx, sum_l2 = total(weighted * codes), total(weights * codes * codes)
    codes = _in_a_byte(codes)
    for _ in range(5):
        changed = torch.zeros((), dtype=torch.bool, device=x.device)  # read once a round
        for i in range(len(x)):
            code, weight = codes[i], weights[i]
            rest_lx = sum_lx - weighted[i] * code
            rest_l2 = sum_l2 - weight * code * code
            new = (x[i] * rest_l2 / rest_lx).round_().clamp_(max=top)
            new_lx = rest_lx + weighted[i] * new
            new_l2 = rest_l2 + weight * new * new
            better = (rest_lx > 0) & (rest_l2 > 0) & (new != code)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = torch.where(better, _in_a_byte(new), code)
            sum_lx = torch.where(better, new_lx, sum_lx)
            sum_l2 = torch.where(better, new_l2, sum_l2)
            changed |= better.any()
        if not bool(changed):
            break
    scale = torch.where(sum_l2 > 0, sum_lx / sum_l2, 0).masked_fill(empty, 0)
    return Symmetric(scale, codes.masked_fill(empty, 0))


def _in_a_byte(codes: Tensor) -> Tensor:
    return codes.remainder(256)


def _peak(x: Tensor) -> Tensor:
    """The number of the greatest magnitude in every block, the first where several are as great."""
    return x.gather(0, x.abs().argmax(0, keepdim=True))[0]


def _weighted_error(
    x: Tensor, weights: Tensor, scale: Tensor, lo: Tensor, codes: Tensor, absolute: bool
) -> Tensor:
    difference = (scale * codes).add_(lo).sub_(x)
    difference = difference.abs_() if absolute else difference.mul_(difference)
    return total(difference.mul_(weights))


def _plain_error(x: Tensor, weights: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
    difference = x - scale * codes
    return total(weights * difference * difference)
