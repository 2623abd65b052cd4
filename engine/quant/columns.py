"""A weight rounded one column after the other, as `engine.quant.methods.gptq` asks for it.

A family says how many columns are rounded at once, how many share parameters, what the parameters
of a group are, and what a column is rounded to; it gathers the codes in the form it stores. Weights
are transposed here, ``[in, out]``, so that a column is contiguous. Parameters and codes are those
of rounding to nearest, found by the same functions.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.quant.stored import StoredWeight


class Columns(Protocol):
    """The columns of one weight, and what has been found of them so far."""

    group: int | None
    """Columns that share parameters; None where those were found when this was made."""
    at_once: int
    """Columns that are rounded together."""

    def fix(self, part: Tensor) -> None:
        """Find the parameters of the next group, ``[columns, out]``."""
        ...

    def round(self, place: int, w: Tensor) -> Tensor:
        """The values ``[at_once, out]`` that ``w`` is rounded to; codes are stored at ``place``.

        The group that the place lies in must have been fixed.
        """
        ...

    def stored(self) -> StoredWeight:
        """All codes and parameters."""
        ...


def group_index(place: int, group: int | None) -> int:
    """The group that a column is in; 0 where all columns share their parameters."""
    return 0 if group is None else place // group
