"""Shares of a count and their intervals, and the difference of two shares of the same items."""

from __future__ import annotations

import math

Z = 1.959963984540054
"""Of a 95% interval."""


def wilson(count: int, total: int, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share (1927); 0 to 1 of nothing."""
    if not total:
        return 0.0, 1.0
    share, z2 = count / total, z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total * total)
    half = z / (1 + z2 / total) * math.sqrt(spread)
    low = max(0.0, centre - half) if count else 0.0
    return low, min(1.0, centre + half) if count < total else 1.0


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided p of the exact McNemar test on the pairs that disagree; 1 if there are none."""
    n = only_one + only_other
    if not n:
        return 1.0
    tail: int = sum(math.comb(n, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, float(tail / 2 ** (n - 1)))


def paired_difference(
    both: int, only_one: int, only_other: int, neither: int, z: float = Z
) -> tuple[float, float, float]:
    """Share of the other minus share of the one, with its interval, of the same items.

    Newcombe's interval from Wilson's of both shares and their correlation (Statistics in Medicine
    17, 1998, method 10), which holds with few items and few disagreements too.
    """
    total = both + only_one + only_other + neither
    if not total:
        return 0.0, -1.0, 1.0
    one, other = both + only_one, both + only_other
    difference = (other - one) / total
    (low_1, high_1), (low_2, high_2) = wilson(one, total, z), wilson(other, total, z)
    p_1, p_2 = one / total, other / total
    phi = _correlation(both, only_one, only_other, neither)
    down, up = (p_2 - low_2, high_1 - p_1), (high_2 - p_2, p_1 - low_1)
    low, high = (math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)) for a, b in (down, up))
    return difference, max(-1.0, difference - low), min(1.0, difference + high)


def _correlation(both: int, only_one: int, only_other: int, neither: int) -> float:
    """Newcombe's φ, with his correction where the two agree more than by chance."""
    total = both + only_one + only_other + neither
    margins = (
        (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    )
    if not margins:
        return 0.0
    excess = both * neither - only_one * only_other
    if excess > 0:
        excess = max(0, 2 * excess - total) / 2  # type: ignore[assignment]
    return excess / math.sqrt(margins)
