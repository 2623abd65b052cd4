"""NLL and KL by position in the window: how much context a prediction has."""

from __future__ import annotations

import torch
from torch import Tensor

from engine import protocol as p
from engine.measure.evaluation.divergence import Positions, mean_with_error, perplexity

FEW = 16
"""Positions with less context than this stand together; from there on buckets double."""


def buckets(least: int, most: int) -> list[tuple[int, int]]:
    """Ranges of context: below `FEW` tokens, then each from a power of two to the next.

    Args:
        least: tokens before the first prediction that counts, at least 1.
        most: tokens before the last one.
    """
    found, low, end = [], least, FEW
    while low <= most:
        while end <= low:
            end *= 2
        found.append((low, min(end - 1, most)))
        low = found[-1][1] + 1
    return found


class PositionSums:
    """Sums of the windows of one micro-batch, bucket by bucket: ``[3, windows, buckets]``."""

    def __init__(self, windows: int, ranges: list[tuple[int, int]]) -> None:
        """
        Args:
            windows: of the micro-batch.
            ranges: of context, without gaps.
        """
        self._starts = torch.tensor([low for low, _ in ranges])
        self.sums = torch.zeros(3, windows, len(ranges), dtype=torch.float64)

    def take(self, found: Positions) -> None:
        """Add NLL of the reference, its change and KL of some windows at some positions."""
        windows, count = found.nll.shape
        # The prediction at position i has i + 1 tokens before it.
        context = torch.arange(found.first + 1, found.first + count + 1)
        bucket = torch.searchsorted(self._starts, context, right=True) - 1
        for sums, values in zip(self.sums, (found.nll, found.dnll, found.kl), strict=True):
            rows = sums[found.row : found.row + windows]
            rows.index_add_(1, bucket, values.double().cpu())


def by_position(
    sums: list[Tensor], ranges: list[tuple[int, int]]
) -> tuple[p.ScoreAtPositions, ...]:
    """The score of each range of context.

    Args:
        sums: of every micro-batch, see `PositionSums`.
        ranges: of context.
    """
    nll, dnll, kl = torch.cat(sums, 1)
    found = []
    for at, (low, high) in enumerate(ranges):
        count = high - low + 1
        before, change, divergence = (
            mean_with_error(each[:, at], count) for each in (nll, dnll, kl)
        )
        found.append(
            p.ScoreAtPositions(
                first=low,
                last=high,
                ppl_reference=perplexity(before.mean),
                ppl=perplexity(before.mean + change.mean),
                dnll=change.mean,
                dnll_se=change.se,
                kl=divergence.mean,
                kl_se=divergence.se,
            )
        )
    return tuple(found)
