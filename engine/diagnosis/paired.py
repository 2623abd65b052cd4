"""Differences of two measurements on the same windows, with Student's interval; no arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Paired(NamedTuple):
    """A mean difference of two measurements of the same windows."""

    mean: float
    se: float
    """Its standard error over windows."""
    half: float
    """Half of its 95% interval."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval."""
        return self.mean - self.half, self.mean + self.half

    @property
    def above(self) -> bool:
        """Whether the first is larger beyond chance: the interval lies above 0."""
        return self.mean > self.half


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """``one − other``, window by window; nan where there are fewer than two, or not as many."""
    count = len(one)
    if count < 2 or count != len(other):
        return Paired(math.nan, math.nan, math.nan)
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean = math.fsum(apart) / count
    variance = math.fsum((each - mean) ** 2 for each in apart) / (count - 1)
    se = math.sqrt(variance / count)
    return Paired(mean, se, student(count - 1) * se)


def student(freedom: int, interval: float = 0.95) -> float:
    """Half of an interval of Student's t, in standard errors.

    Hill's expansion (1970, "Algorithm 396: Student's t-quantiles", Communications of the ACM 13),
    right to a hundred-thousandth; exact for one and two degrees of freedom.

    Args:
        freedom: degrees of freedom, at least 1.
        interval: share of the distribution within it, in the middle.
    """
    tails = 1 - interval
    if freedom == 1:
        return 1 / math.tan(tails * math.pi / 2)
    if freedom == 2:
        return math.sqrt(2 / (tails * (2 - tails)) - 2)
    n = float(freedom)
    a = 1 / (n - 0.5)
    b = 48 / (a * a)
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * tails) ** (2 / n)
    if y > 0.05 + a:  # close to the normal distribution
        x = NormalDist().inv_cdf(tails / 2)
        y = x * x
        if freedom < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = (
            ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1)
            * (n + 1) / (n + 2)
            + 1 / y
        )  # fmt: skip
    return math.sqrt(n * y)
