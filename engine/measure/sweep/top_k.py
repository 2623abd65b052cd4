"""Which rows are certainly not among the K largest: a test repeated window by window.

Every row (a layer in a format) has a value in each of N windows; its full value is the mean over
all of them. Windows come in random order, so that the first n are a sample without replacement,
and the same windows are seen in every row. Row *j* beats row *i* once the lower bound of the mean
of their differences, over the windows seen in both, lies above 0:

    d̄ − t_{n−1}(1 − α) · s_d / √n · √(1 − n/N) > 0

(Student's t of the paired differences with the finite-population correction: Cochran, *Sampling
Techniques*, 3rd ed., §2.8. Differences are paired since a window that is hard for one layer is
hard for all.) A row that K others beat is outside.

**Error.** A row of the true K is left out only if some row that is not among them beats it falsely.
There are at most K·(L − K) such pairs, each looked at once a micro-batch: with
``α = error / (looks · K · (L − K))`` the chance that any of the K is ever left out is at most
``error`` (Bonferroni). Where all windows are seen the bound is the value itself.

**Assumptions.** Random order; differences near enough to normal for t. The test holds its rate on
log-normal tables far more skewed than KL is in any model that was seen. It cannot see what no
window so far has shown: a layer that ruins one window in a thousand and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

ERROR = 0.05
"""Chance that any of the K largest is left out."""

PRECISION = 0.1
"""Half a 95% interval, as a share of the value, below which a row is known well enough."""

LEAST = 8
"""Windows that a row is seen in before it is taken to be known well enough."""

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was seen of one row: its values, or what is left of them."""

    mean: float
    se: float
    """Standard error over windows; nan for one window."""
    windows: int
    values: Values | None = None
    """``[windows]``, in the order in which all rows see them; None where only the sums are kept."""


def evidence(values: Values) -> Evidence:
    """What the values of a row in its first windows say."""
    n = len(values)
    se = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Evidence(float(values.mean()), se, n, values)


def well_known(row: Evidence, precision: float = PRECISION) -> bool:
    """Whether half the row's 95% interval is at most ``precision`` of its value.

    A sampling that ends by its own standard error has an interval that holds the value slightly
    less often than it says (Chow & Robbins 1965, *Annals of Mathematical Statistics* 36; Nádas
    1969 for shares of the value): about 93 of 100 times instead of 95, from `LEAST` windows on.
    """
    if row.windows < LEAST:
        return False
    half = float(stdtrit(row.windows - 1, 0.975)) * row.se
    return half <= precision * abs(row.mean)


def outside(
    rows: Mapping[str, Evidence], total: int, top: int, looks: int, error: float = ERROR
) -> set[str]:
    """The rows that are certainly not among the ``top`` largest.

    Args:
        rows: of all layers, those already decided too.
        total: windows there are.
        top: how many are asked for.
        looks: how often the test is made at most: the number of micro-batches.
        error: chance, over all looks and rows, that any of the largest is left out.
    """
    names = list(rows)
    pairs = top * (len(names) - top)
    if pairs <= 0:
        return set()
    alpha = error / (looks * pairs)
    means = np.array([rows[name].mean for name in names])
    table = _table([rows[name] for name in names])
    beaten = np.zeros(len(names), dtype=int)
    # Which rows may beat others is free to choose by what was seen: every pair is paid for.
    order = np.argsort(-np.nan_to_num(means, nan=-math.inf), kind="stable")
    for j in order[: 2 * top]:
        beaten += _beats(table, int(j), total, alpha)
    return {name for name, count in zip(names, beaten, strict=True) if count >= top}


@dataclass(frozen=True, eq=False)
class _Table:
    values: Values
    """``[rows, windows]``; nan where a row was not seen, or only its sums are kept."""
    means: Values
    ses: Values
    counts: NDArray[np.int64]
    kept: NDArray[np.bool_]
    """Rows whose values are there."""


def _table(rows: list[Evidence]) -> _Table:
    longest = max(0 if row.values is None else row.windows for row in rows)
    values = np.full((len(rows), longest), np.nan)
    for i, row in enumerate(rows):
        if row.values is not None:
            values[i, : row.windows] = row.values
    return _Table(
        values,
        np.array([row.mean for row in rows]),
        np.array([row.se for row in rows]),
        np.array([row.windows for row in rows]),
        np.array([row.values is not None for row in rows]),
    )


def _beats(table: _Table, j: int, total: int, alpha: float) -> NDArray[np.bool_]:
    """Whether row ``j`` beats each row."""
    found = np.zeros(len(table.means), dtype=bool)
    # One row's bound and the other's, half the chance each, where they cannot be paired.
    halves = _half(table.ses, table.counts, total, alpha / 2)
    apart = table.means[j] - halves[j] > table.means + halves
    if not table.kept[j]:
        found = apart
    else:
        found[~table.kept] = apart[~table.kept]
        differences = table.values[j] - table.values[table.kept]
        counts = np.minimum(table.counts[j], table.counts[table.kept])
        seen = ~np.isnan(differences)
        sums = np.where(seen, differences, 0.0).sum(axis=1)
        mean = sums / counts
        squares = np.where(seen, differences - mean[:, None], 0.0) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            se = np.sqrt(squares.sum(axis=1) / (counts - 1) / counts)
        found[table.kept] = mean - _half(se, counts, total, alpha) > 0
    found[j] = False
    return found


def _half(ses: Values, counts: NDArray[np.int64], total: int, alpha: float) -> Values:
    """A one-sided bound's distance from the mean; infinite for one window, 0 for all."""
    with np.errstate(invalid="ignore"):
        t = stdtrit(np.maximum(counts - 1, 1), 1 - alpha)
        half = t * ses * np.sqrt(np.maximum(1 - counts / total, 0.0))
    half = np.where((counts < 2) | np.isnan(half), math.inf, half)
    return np.where(counts >= total, 0.0, half)
