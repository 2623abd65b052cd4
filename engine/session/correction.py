"""A monotone fit of measured to estimated KL, applied to estimates; no tensors, no numpy.

Where the quadratic model fails, an estimate is off by a factor that grows with the effect. The
layers that were measured show this factor for the others: `Agreement` holds the knots of the fit,
this module interpolates between them.

The worst layers are measured first, so that the others lie below the lowest knot. A single layer
makes that knot, and is off by a third as easily as not: at it and below, the median ratio of all
measured layers holds.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from engine.protocol import Agreement, Estimate

LEAST_PAIRS = 8
"""Layers that must be both estimated and measured before estimates are corrected."""
OF_A_MEDIAN = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, of normally distributed values."""


class Correction(msgspec.Struct, frozen=True):
    """A monotone map from estimated to expected KL: straight lines between knots in log-log."""

    estimated: tuple[float, ...]
    """Knots, in nats per token, above 0 and ascending."""
    measured: tuple[float, ...]
    """Measured KL at each knot, above 0 and never falling."""
    spread: float = 0.0
    """Standard deviation of the logarithm of measured over estimated KL."""
    layers: int = 0
    """That it is based on."""

    def common(self, measured: Sequence[float], every: Sequence[float]) -> float:
        """Standard error, as a share, that all corrected estimates have in common.

        That of the median ratio of so many layers; and since those with the largest estimates are
        measured, estimates that are too large are among them more often than among the others, by
        as much as regression towards the mean has it.

        Args:
            measured: estimates of the layers that were measured.
            every: of all layers.
        """
        of_ratio = OF_A_MEDIAN * self.spread / math.sqrt(self.layers) if self.layers else 0.0
        some = [math.log(each) for each in measured if each > 0]
        all_ = [math.log(each) for each in every if each > 0]
        variance = statistics.pvariance(all_) if all_ else 0.0
        if not some or not variance:
            return of_ratio
        chosen = (statistics.fmean(some) - statistics.fmean(all_)) / variance
        return math.hypot(of_ratio, self.spread**2 * chosen)

    def kl(self, estimate: float) -> float:
        """The KL to expect for an estimated one.

        Outside the knots the ratio of the nearest one applies, so that 0 stays 0 and the sign is
        kept; of the lowest it is that of all layers.
        """
        x, y = self.estimated, self.measured
        if not estimate > x[0]:
            return estimate * (y[0] / x[0])
        if estimate >= x[-1]:
            return estimate * (y[-1] / x[-1])
        at = bisect_right(x, estimate)
        low, high = x[at - 1], x[at]
        share = math.log(estimate / low) / math.log(high / low)
        return y[at - 1] * math.pow(y[at] / y[at - 1], share)


def corrected(estimate: Estimate, fit: Correction | None, curvature: float = 1.0) -> Estimate:
    """An estimate with the expected KL, and its standard error scaled alike.

    ΔNLL of a degraded layer is a term of first order in the weights and a share of KL. For a
    restored layer it is unchanged.

    Args:
        estimate: as it was made, with all of KL in ΔNLL.
        fit: of KL; None to leave it.
        curvature: the share, see `engine.session.text_curvature`.
    """
    if fit is None and curvature == 1.0:
        return estimate
    kl = estimate.kl if fit is None else fit.kl(estimate.kl)
    scale = kl / estimate.kl if estimate.kl else 1.0
    dnll = estimate.dnll
    if estimate.direction == "degrade":
        dnll += curvature * kl - estimate.kl
    return msgspec.structs.replace(estimate, kl=kl, kl_se=estimate.kl_se * scale, dnll=dnll)


def fitted(agreement: Agreement | None) -> Correction | None:
    """The fit of an agreement; None if it is based on fewer than `LEAST_PAIRS` layers."""
    if agreement is None or agreement.layers < LEAST_PAIRS:
        return None
    knots = _ascending(agreement.estimated, agreement.measured, agreement.ratio)
    if not knots:
        return None
    places, heights = zip(*knots, strict=True)
    return Correction(places, heights, agreement.spread, agreement.layers)


def _ascending(
    estimated: Sequence[float], measured: Sequence[float], ratio: float
) -> list[tuple[float, float]]:
    """The knots above 0, with each estimate once, ascending; neighbouring numbers are one.

    The first has the ratio of all layers.
    """
    found: list[tuple[float, float]] = []
    for x, y in zip(estimated, measured, strict=False):
        if not (0 < x < math.inf and 0 < y < math.inf):
            continue
        if not found:
            found.append((x, x * ratio if 0 < ratio < math.inf else y))
        elif x / found[-1][0] > 1:
            found.append((x, max(y, found[-1][1])))
    return found
