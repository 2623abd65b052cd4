"""Errors of an approximated weight, streamed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from engine.measure.weights.chunks import rows_of, spans
from engine.measure.weights.errors import WeightErrors, errors_of


def weight_errors(
    weight: Tensor,
    approximate: Callable[[Tensor], Tensor],
    rows_at_once: int | None = None,
) -> WeightErrors:
    """Errors of ``approximate(weight)`` against ``weight``.

    With ``rows_at_once`` the approximation is made of so many rows at a time (experts one below
    the other), which bounds memory; only for formats in which no group of weights crosses a row.
    """
    if rows_at_once is None:
        return compare(weight, approximate(weight))
    rows = rows_of(weight)
    sums = Sums()
    for start in range(0, rows.shape[0], rows_at_once):
        part = rows[start : start + rows_at_once]
        sums.add(part, approximate(part))
    return sums.errors()


def compare(weight: Tensor, approx: Tensor) -> WeightErrors:
    """Errors of ``approx`` against ``weight``, of one shape, over the finite entries of the latter.

    Raises:
        ValueError: the shapes differ.
    """
    sums = Sums()
    sums.add(weight, approx)
    return sums.errors()


class Sums:
    """Running sums behind `WeightErrors`, over chunks of a weight."""

    def __init__(self) -> None:
        self.signal = self.noise = self.distance = self.farthest = 0.0
        self.entries = 0

    def add(self, weight: Tensor, approx: Tensor) -> None:
        """Add a chunk and its approximation."""
        if weight.shape != approx.shape:
            raise ValueError(f"{list(approx.shape)} does not approximate {list(weight.shape)}")
        rows, approx_rows = rows_of(weight), rows_of(approx)
        for span in spans(rows):
            chunk = rows[span].to(torch.float64)
            gap = approx_rows[span].to(torch.float64).sub_(chunk).abs_()
            signal = float(chunk.square().sum())
            count = chunk.numel()
            if not math.isfinite(signal):
                finite = chunk.isfinite()
                count = int(finite.sum())
                gap = gap.where(finite, 0.0)
                signal = float(chunk.where(finite, 0.0).square().sum())
            self.entries += count
            self.signal += signal
            farthest = float(gap.amax())
            # max() would drop a NaN: an approximation that has one must not look good.
            if math.isnan(farthest) or farthest > self.farthest:
                self.farthest = farthest
            self.distance += float(gap.sum())
            self.noise += float(gap.square_().sum())

    def errors(self) -> WeightErrors:
        """The errors over all that was added."""
        return errors_of(self.signal, self.noise, self.distance, self.farthest, self.entries)
