"""``+hqq``: a fractional zero point per group, found by half-quadratic splitting.

HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
sections 2.2 and 2.3): with the scale fixed, ``‖W − Ŵ‖_p^p`` with p = .7 is made small by turns,
``W_e ← shrink(W − Ŵ, β)`` and ``z ← mean(W_q − (W − W_e) / s)``, while β grows. The reference is
``optimize_weights_proximal`` of the hqq package. It stops once the error of the whole tensor grows;
here every group keeps the best of all its iterates by its mean absolute error, rounded to the dtype
it is stored in, and round to nearest with its whole zero point is the first of them. So no group
ends with a greater mean absolute error than rounding to nearest has. A group of zeros keeps 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.formats.grammar import Format

P_NORM = 0.7
BETA = 10.0
KAPPA = 1.01
"""β is multiplied by it at every step."""
ITERATIONS = 20

Total = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Sums of a function of the weights over all that share a zero point."""


def splits(fmt: Format) -> bool:
    """Whether to optimise zero points."""
    return any(method.name == "hqq" for method in fmt.methods)


def half_quadratic(
    total: Total,
    count: Tensor,
    scale: Tensor,
    starts: tuple[Tensor, Tensor],
    ends: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Zero points of least mean absolute error among the iterates, in the shape of ``scale``.

    Args:
        total: Takes ``f``, which maps weights ``[…, groups, size]`` to numbers of that shape, and
            sums the numbers of each group, filling left out.
        count: Weights of each group.
        scale: float32 with the values that are stored.
        starts: The whole zero points of rounding to nearest, which win a tie, and the real ones
            that the iteration sets out from.
        ends: The least and the greatest code.
        dtype: What zero points are stored in: iterates are judged as they are stored.
    """
    divisor = scale.unsqueeze(-1)

    def codes(weights: Tensor, zero: Tensor) -> Tensor:
        return (weights / divisor + zero.unsqueeze(-1)).round_().clamp_(*ends)

    def residual(weights: Tensor, zero: Tensor) -> Tensor:
        return weights - (codes(weights, zero) - zero.unsqueeze(-1)) * divisor

    def error(zero: Tensor) -> Tensor:
        return total(lambda weights: residual(weights, zero).abs_())

    def moved(zero: Tensor, beta: float) -> Tensor:
        def terms(weights: Tensor) -> Tensor:
            kept = weights - _shrunk(residual(weights, zero), beta)
            return codes(weights, zero) - kept / divisor

        return (total(terms) / count).to(torch.float32)

    best, zero = starts
    least = error(best)
    beta = BETA
    for step in range(ITERATIONS + 1):
        if step:
            zero = moved(zero, beta)
            beta *= KAPPA
        stored = zero.to(dtype).to(torch.float32)
        found = error(stored)
        better = found < least
        best, least = torch.where(better, stored, best), torch.where(better, found, least)
    return best


def _shrunk(residual: Tensor, beta: float) -> Tensor:
    """``sign(x) · max(0, |x| − |x|^(p − 1) / β)``, the generalised soft threshold; 0 for 0."""
    size = residual.abs()
    return residual.sign() * (size - size.pow(P_NORM - 1) / beta).clamp_(min=0)
