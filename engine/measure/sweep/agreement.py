"""How well estimates agree with measurements: ranks, the median ratio, a monotone fit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from engine import protocol as p

SECONDS = 1.0
"""Minimum seconds between two events about one format."""

FEWEST = 3
"""Fewest layers for a meaningful rank correlation."""

Values = NDArray[np.float64]


def spearman(one: Values, other: Values) -> float:
    """Rank correlation of finite values: Pearson's of the ranks, ties sharing a mean; else nan."""
    # SciPy's spearmanr divides a covariance matrix twice, and is off in the last digit. These sums
    # of products of ranks are exact, so that a saved figure does not depend on how it was summed.
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length else math.nan


def _ranks(values: Values) -> Values:
    """Ranks of finite values from 1, ties sharing their mean: `scipy.stats` is slow to import."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks


def monotone_fit(estimated: Values, measured: Values) -> tuple[list[float], list[float]]:
    """Knots of the least-squares monotone fit of log measured to log estimated values.

    Isotonic regression (pool adjacent violators, by SciPy), reduced to the ends of its steps:
    between two knots the fit is the straight line of the logarithms.

    Args:
        estimated: ``[layers]``, greater than 0.
        measured: as ``estimated``.

    Returns:
        Estimated values, strictly ascending, and the fitted measurement at each.
    """
    # By their logarithms, among which neighbouring numbers may be one.
    _, first, index = np.unique(np.log(estimated), return_index=True, return_inverse=True)
    places = estimated[first]
    weights = np.bincount(index).astype(np.float64)
    heights = np.bincount(index, weights=np.log(measured)) / weights
    fit = isotonic_regression(heights, weights=weights)
    knots = np.exp(fit.x)
    ends = np.union1d(fit.blocks[:-1], fit.blocks[1:] - 1)
    return places[ends].tolist(), knots[ends].tolist()


def agreement(
    format: str,
    direction: p.Direction,
    estimates: Mapping[str, p.Estimate],
    measured: Mapping[str, p.Sensitivity],
    floor: float = 0.0,
) -> p.Agreement | None:
    """How well the estimates of one format agree with its measurements.

    Non-finite figures are ignored. KL not above ``floor``, which rounding alone may cause, is left
    out of ratio and fit: estimates do not include that rounding.

    Returns:
        None if fewer than `FEWEST` layers are both estimated and measured.
    """
    both = [
        (estimates[name], measured[name])
        for name in measured
        if name in estimates
        and all(
            math.isfinite(x)
            for fact in (estimates[name], measured[name])
            for x in (fact.kl, fact.dnll)
        )
    ]
    if len(both) < FEWEST:
        return None
    guessed = np.array([guess.kl for guess, _ in both])
    found = np.array([fact.kl for _, fact in both])
    positive = (guessed > 0) & (found > floor)
    knots: tuple[list[float], list[float]] = ([], [])
    ratio, spread, curvature = math.nan, 0.0, 1.0
    if positive.any():
        if direction == "degrade":
            slope = np.array([guess.dnll - guess.kl for guess, _ in both])
            bent = np.array([fact.dnll for _, fact in both]) - slope
            curvature = float(np.median(bent[positive] / found[positive]))
        ratio = float(np.median(found[positive] / guessed[positive]))
    if positive.sum() >= FEWEST:
        knots = monotone_fit(guessed[positive], found[positive])
        spread = float(np.log(found[positive] / guessed[positive]).std(ddof=1))
    return p.Agreement(
        format=format,
        direction=direction,
        layers=len(both),
        rank_kl=spearman(guessed, found),
        rank_dnll=spearman(
            np.array([guess.dnll for guess, _ in both]), np.array([fact.dnll for _, fact in both])
        ),
        ratio=ratio,
        spread=spread,
        curvature=curvature,
        estimated=knots[0],
        measured=knots[1],
    )


class AgreementTracker:
    """Agreement of estimates with the measurements of a sweep so far."""

    def __init__(
        self,
        direction: p.Direction,
        estimates: Mapping[str, Mapping[str, p.Estimate]],
        floor: float = 0.0,
    ) -> None:
        """
        Args:
            direction: of the sweep.
            estimates: by format, by layer; empty disables the comparison.
            floor: KL that rounding alone may cause.
        """
        self._direction: p.Direction = direction
        self._estimates, self._floor = estimates, floor
        self._last = -math.inf

    def now(self, format: str, measured: Mapping[str, p.Sensitivity]) -> Iterator[p.Agreement]:
        """The current agreement, if there is one."""
        estimates = self._estimates.get(format)
        if not estimates:
            return
        found = agreement(format, self._direction, estimates, measured, self._floor)
        if found is not None:
            self._last = time.monotonic()
            yield found

    def growing(self, format: str, measured: Mapping[str, p.Sensitivity]) -> Iterator[p.Agreement]:
        """Like `now`, but at most about once a second."""
        if time.monotonic() - self._last >= SECONDS:
            yield from self.now(format, measured)
