"""`Columns`: a weight rounded column by column, for `engine.quant.methods.gptq`.

A family defines how many columns are rounded at once, how many share parameters, the parameters of
a group, and what a column is rounded to; it collects the codes in its stored form. Weights are
transposed here, ``[in, out]``, so that a column is contiguous. Parameters and codes come from the
same functions as rounding to nearest.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.quant.stored import StoredWeight


class Columns(Protocol):
    """The columns of one weight, and the parameters and codes found so far."""

    group: int | None
    """Columns that share parameters; None if those were found on construction."""
    at_once: int
    """Columns that are rounded together."""

    def fix(self, part: Tensor) -> None:
        """Find the parameters of the next group, ``[columns, out]``."""
        ...

    def round(self, place: int, w: Tensor) -> Tensor:
        """The values ``[at_once, out]`` that ``w`` is rounded to; codes are stored at ``place``.

        The group of ``place`` must have been fixed.
        """
        ...

    def stored(self) -> StoredWeight:
        """All codes and parameters."""
        ...


def group_index(place: int, group: int | None) -> int:
    """The group of a column; 0 if all columns share their parameters."""
    return 0 if group is None else place // group
