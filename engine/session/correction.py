"""A monotone fit of measured to estimated KL, applied to estimates: no tensors, no numpy.

Where the quadratic model ends an estimate is too small or too large by a factor that grows with
the effect. What was measured of some layers tells the factor for the others: `Agreement` brings
the knots of the fit, this module draws the line through them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from engine.protocol import Agreement, Estimate

LEAST_PAIRS = 8
"""Layers that have to be both estimated and measured before estimates are corrected."""


class Correction(msgspec.Struct, frozen=True):
    """A monotone map of estimated to expected KL: a line in log-log between knots."""

    estimated: tuple[float, ...]
    """Knots, in nats per token, above 0 and ascending."""
    measured: tuple[float, ...]
    """What was measured there, above 0 and never falling."""

    def kl(self, estimate: float) -> float:
        """The KL to expect of an estimated one.

        Outside the knots the ratio is that of the end knot, so that 0 stays 0 and a sign stays.
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

    def apply(self, estimate: Estimate) -> Estimate:
        """An estimate with the KL to expect, its standard error to scale.

        ΔNLL is a part of first order in the weights and KL: where a layer is degraded it moves by
        as much as the KL. Of a restored layer it is left as it is.
        """
        kl = self.kl(estimate.kl)
        scale = kl / estimate.kl if estimate.kl else 1.0
        moved = kl - estimate.kl if estimate.direction == "degrade" else 0.0
        return msgspec.structs.replace(
            estimate, kl=kl, kl_se=estimate.kl_se * scale, dnll=estimate.dnll + moved
        )


def fitted(agreement: Agreement | None) -> Correction | None:
    """The fit that an agreement brings; None while it rests on fewer than `LEAST_PAIRS` layers."""
    if agreement is None or agreement.layers < LEAST_PAIRS:
        return None
    knots = _ascending(agreement.estimated, agreement.measured)
    if not knots:
        return None
    return Correction(tuple(x for x, _ in knots), tuple(y for _, y in knots))


def _ascending(estimated: Sequence[float], measured: Sequence[float]) -> list[tuple[float, float]]:
    """The knots that a logarithm can be taken of, each estimate once and above the last."""
    found: list[tuple[float, float]] = []
    for x, y in zip(estimated, measured, strict=False):
        if 0 < x < math.inf and 0 < y < math.inf and (not found or x > found[-1][0]):
            found.append((x, max(y, found[-1][1]) if found else y))
    return found
