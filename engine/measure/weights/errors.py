"""Errors of an approximated weight, from sums over its entries; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine import protocol as p


@dataclass(frozen=True)
class WeightErrors:
    """Errors of an approximation Ŵ of W, over the finite entries of W.

    Attributes:
        frobenius: ``‖W − Ŵ‖_F``.
        relative: ``‖W − Ŵ‖_F / ‖W‖_F``; 0 where both are zero, infinite where only W is.
        max_abs: ``max |W − Ŵ|``.
        mean_abs: ``mean |W − Ŵ|``.
        rmse: ``‖W − Ŵ‖_F / √n``.
        sqnr_db: ``10·log10(‖W‖² / ‖W − Ŵ‖²)``, decibels; infinite where the two are equal,
            minus infinity where W is zero and Ŵ is not.
    """

    frobenius: float
    relative: float
    max_abs: float
    mean_abs: float
    rmse: float
    sqnr_db: float

    @property
    def fact(self) -> p.WeightError:
        """Those that are stored."""
        return p.WeightError(
            self.frobenius, self.relative, self.max_abs, self.mean_abs, self.sqnr_db
        )


def errors_of(
    signal: float, noise: float, distance: float, farthest: float, entries: int
) -> WeightErrors:
    """The errors of an approximation, from sums over the finite entries of W.

    Args:
        signal: ``‖W‖²``.
        noise: ``‖W − Ŵ‖²``.
        distance: ``Σ |W − Ŵ|``.
        farthest: ``max |W − Ŵ|``.
        entries: how many there are.
    """
    n = max(1, entries)
    frobenius, norm = math.sqrt(noise), math.sqrt(signal)
    if frobenius == 0:
        relative, sqnr_db = 0.0, math.inf
    elif norm == 0:
        relative, sqnr_db = math.inf, -math.inf
    else:
        relative = frobenius / norm
        sqnr_db = -20 * math.log10(relative) if relative < math.inf else -math.inf
    return WeightErrors(
        frobenius=frobenius,
        relative=relative,
        max_abs=farthest,
        mean_abs=distance / n,
        rmse=frobenius / math.sqrt(n),
        sqnr_db=sqnr_db,
    )
