"""How much of a layer's KL the text's own loss curves by; no tensors, no numpy.

To second order ``ΔNLL = slope + c · KL``. With ``c = 1`` the text would be as the model expects it:
the curvature of NLL over labels drawn from the model is that of KL. A text that the model is too
sure about lies elsewhere: noise that makes the model less sure costs less there, and ``c`` is
smaller. It belongs to the layer, whatever its format, and is 1 for the head, whose logits are
linear in its weight. Measured layers show it, since the slope is known exactly from the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine import protocol as p
from engine.session.correction import LEAST_PAIRS
from engine.session.state import Session

PRIOR_KL = 1e-6
"""Measured KL, nats per token, at which a layer's own curvature counts as much as all layers'."""


class TextCurvature:
    """``c`` of every layer, from what was measured of degraded layers."""

    def __init__(self, session: Session) -> None:
        """
        Args:
            session: whose effects tell.
        """
        effects = session.effects
        self._roles = session.layers.roles
        self._both: list[tuple[Sequence[p.Sensitivity | None], Sequence[p.Estimate | None]]] = [
            (measured, effects.estimated[key])
            for key, measured in effects.measured.items()
            if key.direction == "degrade" and key.by == "layer" and key in effects.estimated
        ]
        found = [
            each
            for key, each in effects.agreement.items()
            if key.direction == "degrade" and each.layers >= LEAST_PAIRS
        ]
        most = max(found, key=lambda each: each.layers, default=None)
        self.usual = most.curvature if most is not None else 1.0
        """In the median of measured layers, where there are enough; else 1."""

    def of(self, row: int) -> float:
        """``c`` of the layer on a row."""
        if self._roles[row] == "head":
            return 1.0
        curved, kl = self.usual * PRIOR_KL, PRIOR_KL
        for measured, estimated in self._both:
            exact, guess = measured[row], estimated[row]
            if exact is None or guess is None or not exact.kl > 0:
                continue
            bent = exact.dnll - (guess.dnll - guess.kl)
            if math.isfinite(bent) and math.isfinite(exact.kl):
                curved, kl = curved + bent, kl + exact.kl
        return curved / kl
