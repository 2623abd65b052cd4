"""Running statistics of one tensor over tokens: exact sums and maxima, quantiles by a sketch.

All of it is sums and maxima, so texts can be added one after another and merged in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHIFT = 18
"""Bits of a float32 that the sketch ignores: 5 of its mantissa are left, 32 bins a factor of 2, so
a quantile is off by 1.6% of its value at most."""
BINS = 1 << (31 - SHIFT)


@dataclass(eq=False)
class ActivationSums:
    """Of tensors ``[tokens, channels]``."""

    maximum: Tensor
    """Greatest ``|x|`` of every channel, float32 ``[channels]``."""
    tokens: int = 0
    total: float = 0.0
    """``Σ x``."""
    magnitude: float = 0.0
    """``Σ |x|``."""
    squares: float = 0.0
    """``Σ x²``."""
    nonfinite: int = 0
    sketch: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    """Magnitudes by their logarithm."""
    norms: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    """Norms of tokens by their logarithm."""
    largest: float = 0.0
    """Largest norm of a token."""
    position: int = -1
    """Where in its window that token is."""

    @classmethod
    def empty(cls, channels: int) -> ActivationSums:
        """Of no tokens yet."""
        return cls(torch.zeros(channels))

    @torch.no_grad()
    def add(self, values: Tensor, seq_len: int) -> None:
        """Add tokens ``[tokens, channels]``, whole windows of ``seq_len`` one after another.

        Args:
            values: of any floating dtype; what is not finite is counted, and left out of the rest.
            seq_len: for the position of a token; 0 where tokens are not in the order of the text.
        """
        if not len(values):
            return
        x = values.detach().float()
        size = x.abs()
        if not bool(torch.isfinite(size.sum())):
            finite = torch.isfinite(x)
            self.nonfinite += int((~finite).sum())
            x, size = x.where(finite, 0.0), size.where(finite, 0.0)
        self.tokens += len(x)
        self.maximum = torch.maximum(self.maximum, size.amax(0).cpu())
        # Rows are summed in float32, and rows in float64.
        self.total += float(x.sum(1).double().sum())
        self.magnitude += float(size.sum(1).double().sum())
        norms = torch.linalg.vector_norm(x, dim=1)
        self.squares += float(norms.double().square().sum())
        largest, at = norms.max(0)
        if float(largest) > self.largest:
            self.largest = float(largest)
            self.position = int(at) % seq_len if seq_len else -1
        self.norms += _binned(norms)
        self.sketch += _binned(size.flatten())

    def merge(self, other: ActivationSums) -> None:
        """Add what another has seen."""
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.tokens += other.tokens
        self.total += other.total
        self.magnitude += other.magnitude
        self.squares += other.squares
        self.nonfinite += other.nonfinite
        self.sketch += other.sketch
        self.norms += other.norms
        if other.largest > self.largest:
            self.largest, self.position = other.largest, other.position

    @property
    def count(self) -> int:
        """Numbers that were added."""
        return self.tokens * len(self.maximum)

    @property
    def mean(self) -> float:
        """Mean magnitude."""
        return self.magnitude / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        if not self.count:
            return math.nan
        return math.sqrt(max(0.0, self.squares / self.count - (self.total / self.count) ** 2))

    def quantile(self, share: float) -> float:
        """The magnitude that a share of all lie below, within half a bin."""
        return quantile(self.sketch, share)

    def typical_norm(self) -> float:
        """Median norm of a token."""
        return quantile(self.norms, 0.5)


def quantile(counts: Tensor, share: float) -> float:
    """The value that a share of those in a sketch lie below; nan of none."""
    total = int(counts.sum())
    if not total:
        return math.nan
    below = counts.cumsum(0)
    at = int(torch.searchsorted(below, math.ceil(share * total)))
    edges = torch.tensor([at, at + 1], dtype=torch.int32).bitwise_left_shift(SHIFT)
    return 0.0 if at == 0 else float(edges.view(torch.float32).mean())


def above(counts: Tensor, value: float) -> int:
    """How many of those in a sketch are in the bin of a value, or above it."""
    at = torch.tensor([value]).view(torch.int32).bitwise_right_shift(SHIFT)
    return int(counts[int(at) :].sum())


def _binned(magnitudes: Tensor) -> Tensor:
    """How many magnitudes are in each bin, int64 ``[BINS]`` on the CPU.

    The bits of a positive float32 are ordered as its value, its exponent first.
    """
    at = magnitudes.contiguous().view(torch.int32).bitwise_right_shift(SHIFT)
    return torch.bincount(at, minlength=BINS).cpu()
