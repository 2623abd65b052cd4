"""``+clip``: search for the range of a group with the least error.

Weights beyond a range are clamped to its ends, so that those within it have finer steps. Every
group takes the range, a fraction of its own, of least squared error ``Σ (w − ŵ)²``: the search of
``Quantizer.find_params(mse=True)`` of IST-DASLab's gptq and of the MSE observer of llm-compressor,
here with the power 2 (theirs is 2.4); the optimum itself is that of Banner et al. 2019
(arXiv 1810.05723, equation 5). Seventeen ranges from the whole down to a fifth of it are tried, and
then the distance between the best one and its neighbours is halved twice. The whole range is
among them, and what is compared is what is stored: no group ends with a greater squared error than
rounding to nearest has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.formats.grammar import Format

FACTORS = tuple(1 - step / 20 for step in range(1, 17))
"""Fractions of the whole range that are tried first: .95 to .2."""
HALVINGS = (0.025, 0.0125)
"""Distances to either side of the best fraction that are tried then."""


def clips(fmt: Format) -> bool:
    """Whether to search for ranges."""
    return any(method.name == "clip" for method in fmt.methods)


def best_factors(
    error: Callable[[Tensor], Tensor], ranges: Tensor, wider: Sequence[float] = ()
) -> Tensor:
    """The factor of every range that has the least error, in the shape of ``ranges``; 1 on a tie.

    Args:
        error: The squared errors for factors, all in the shape of ``ranges``.
        ranges: One number for each group; only shape and device are looked at.
        wider: Factors above 1 to try too, for formats whose values are not evenly spaced.
    """
    best = torch.ones_like(ranges, dtype=torch.float32)
    least = error(best)
    most = max(1.0, *wider) if wider else 1.0

    def consider(factors: Tensor) -> None:
        nonlocal best, least
        found = error(factors)
        better = found < least
        best, least = torch.where(better, factors, best), torch.where(better, found, least)

    for factor in (*wider, *FACTORS):
        consider(torch.full_like(best, factor))
    for distance in HALVINGS:
        centre = best
        for side in (-distance, distance):
            consider((centre + side).clamp(max=most))
    return best
