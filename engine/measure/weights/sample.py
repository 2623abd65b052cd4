"""What a few rows of a weight tell about all: on how many levels they lie, and in which groups.

`SAMPLED` rows, evenly spaced, as float32. A pass over the rows picks them up on its way.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

SAMPLED = 16
"""Rows that are looked at."""
GROUP = 128
"""Weights of a group, as formats have it; a shorter row is one group."""
PARTS = 4
"""Parts of a group: of 32 weights."""
RUN = 32
"""Consecutive weights whose distinct values are counted."""
FIRST = 1024
"""Weights of a row whose distinct values are counted."""
TWO_SIZES = 4.0
"""From this ratio of their medians on, two parts of a group are of two sizes."""
COLUMNS_APART = 2.5
"""The gap between two sets of a group's columns, by RMS over the sampled rows, which smear it."""
LEAST_PART = 16
"""Weights of a part whose median can be told from chance."""
SOME = 0.1
"""Share of a group's columns that a set has at least; fewer are outliers."""


class Sample(NamedTuple):
    """Figures of the sampled rows; see `LayerWeights`."""

    levels: int = 0
    row_levels: int = 0
    mantissa: int = -1
    noise_g64: float = float("nan")
    noise_g32: float = float("nan")
    mixed: float = 0.0


def sampled_rows(height: int) -> list[int]:
    """The rows that are looked at, of so many."""
    return sorted({number * height // SAMPLED for number in range(SAMPLED)}) if height else []


def sample_of(rows: Array) -> Sample:
    """Figures of some rows.

    Args:
        rows: float32 ``[rows, width]``; those with entries that are not finite do not count.
    """
    rows = np.ascontiguousarray(rows[np.isfinite(rows).all(1)], np.float32)
    if not rows.size or not rows.any():
        return Sample()
    smaller = _noise(rows)
    return Sample(
        _levels(rows), _row_levels(rows), _mantissa(rows), smaller[0], smaller[1], _mixed(rows)
    )


def _levels(rows: Array) -> int:
    """Most distinct values among `RUN` consecutive weights, nearly all of them not zero."""
    width = rows.shape[1] // RUN * RUN
    runs = np.sort(rows[:, :width].reshape(-1, RUN), 1)
    runs = runs[(runs != 0).sum(1) >= RUN - RUN // 8]
    return int((np.diff(runs, axis=1) != 0).sum(1).max()) + 1 if len(runs) else 0


def _row_levels(rows: Array) -> int:
    some = np.sort(rows[:, :FIRST], 1)
    return int((np.diff(some, axis=1) != 0).sum(1).max()) + 1


def _mantissa(rows: Array) -> int:
    """Bits of the mantissa that any of the weights needs."""
    used = int(np.bitwise_or.reduce(rows.view(np.uint32), axis=None)) & 0x7FFFFF
    return 23 - ((used & -used).bit_length() - 1) if used else 0


def _groups(rows: Array) -> Array | None:
    """``[rows, groups, weights]`` without what is left of a row; None if it is too short."""
    width = rows.shape[1]
    size = GROUP if width >= GROUP else width // PARTS * PARTS
    if size < PARTS * 8:
        return None
    whole = width // size * size
    return rows[:, :whole].reshape(len(rows), -1, size)


def _noise(rows: Array) -> tuple[float, float]:
    """Squares of the ranges of half and quarter groups over those of groups, which 0 is in."""
    groups = _groups(rows)
    if groups is None:
        return float("nan"), float("nan")
    parts = groups.reshape(*groups.shape[:2], PARTS, -1)
    lo, hi = np.minimum(parts.min(3), 0), np.maximum(parts.max(3), 0)

    def squares(together: int) -> float:
        shape = *lo.shape[:2], PARTS // together, together
        least, most = lo.reshape(shape).min(3), hi.reshape(shape).max(3)
        return float(np.square((most - least).astype(np.float64)).mean())

    whole = squares(PARTS)
    return (squares(2) / whole, squares(1) / whole) if whole > 0 else (float("nan"),) * 2


def _mixed(rows: Array) -> float:
    """Share of groups of weights of two sizes: in parts of a group, or in columns across rows."""
    groups = _groups(rows)
    if groups is None or groups.shape[2] < PARTS * LEAST_PART:
        return 0.0
    # Of a part the median counts: an outlier makes no second size.
    parts = np.median(np.abs(groups).reshape(*groups.shape[:2], PARTS, -1), 3)
    most, least = parts.max(2), parts.min(2)
    apart = (least > 0) & (most > TWO_SIZES * least)
    share = float(apart.mean())
    if len(rows) < SAMPLED // 2:
        return share
    columns = np.sort(np.square(groups, dtype=np.float64).mean(0), 1)
    some = max(1, round(SOME * columns.shape[1]))
    inner = columns[:, some - 1 : columns.shape[1] - some + 1]
    steps = inner[:, 1:] > COLUMNS_APART**2 * np.maximum(inner[:, :-1], 1e-300)
    two = (steps & (inner[:, :-1] > 0)).any(1)
    return max(share, float((apart | two).mean()))
