"""Weights of one form that most layouts share: ``(code - zero) · scale``, a table's value · scale.

All of it is computed in float32, where the difference of two codes and its product with a scale of
16 bits are exact, and rounded once to the dtype of the weight: the same as the layouts' own tools,
which compute in that dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.packed import four_bits
from engine.checkpoint.packed.four_bits import Array, FourBits
from engine.checkpoint.weight import Codes

LEAST = 1 << 18
"""Weights that are worth a compiled loop; importing numba takes longer than fewer."""
PART = 1 << 18
"""Weights that are made in float32 before they are kept in 16 bits."""

_rooms = threading.local()


def _room(size: int) -> Array:
    """Memory of this thread for so many numbers of float32; fresh memory takes longer to fill."""
    room: Array | None = getattr(_rooms, "numbers", None)
    if room is None or len(room) < size:
        room = _rooms.numbers = np.empty(size, np.float32)
    return room[:size]


@dataclass(frozen=True)
class Grid:
    """A weight's codes, and scales and zero points by row and group of columns.

    A row of ``scales`` serves ``rows_each`` rows of the weight; their last dimension are groups.
    """

    unpack: Callable[[int, int], Tensor]
    """Codes ``[rows, in]`` of some rows: integers from 0 on, or numbers in themselves."""
    scales: Tensor
    """``[rows, groups]``, in the dtype they are stored in."""
    dtype: torch.dtype
    """Of the weight."""
    levels: int
    """How many codes there are; 0 where they are numbers in themselves."""
    zeros: Tensor | None = None
    """``[rows, groups]``; None for none."""
    middle: int = 0
    """The code of zero, where there are no zero points."""
    index: Tensor | None = None
    """The group of each column, int64 ``[in]``; None for equal groups, one after another."""
    rows_each: int = 1
    offsets: Tensor | None = None
    """What is added to each product, ``[rows, groups]``."""
    rounded: bool = False
    """Whether a product is rounded before something is added: no fused operation."""
    table: Tensor | None = None
    """The number that each code stands for, float32; None for the codes themselves."""
    packed: FourBits | None = None
    """The same, as a compiled loop takes it, if it knows that."""

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        packed = self.packed
        if packed is None or (last - first) * packed.width < LEAST or not four_bits.kernels():
            return self._of_codes(self.unpack(first, last), first, last)
        found = torch.empty(last - first, packed.width, dtype=self.dtype)
        step = max(1, PART // packed.width)
        wide = _room(step * packed.width).reshape(step, packed.width)
        for top in range(0, last - first, step):
            part = wide[: last - first - top]
            packed.fill(first + top, part)
            found[top : top + step] = torch.from_numpy(part)
        return found

    def changed(self, **parts: Any) -> Grid:
        """The same with other codes, scales, zero points or groups than are stored."""
        return replace(self, packed=None, **parts)

    def _of_codes(self, found: Tensor, first: int, last: int) -> Tensor:
        """What codes of some rows stand for, as many from each group."""
        values = found.to(torch.float32) if self.table is None else self.table[found.int()]
        scales = self.at(self.scales, first, last).to(torch.float32)
        zeros = None if self.zeros is None else self.at(self.zeros, first, last).to(torch.float32)
        # By group, unless each column has its own.
        whole = values if self.index is not None else values.view(last - first, scales.shape[1], -1)
        if zeros is not None:
            whole.sub_(self._wide(zeros))
        elif self.middle:
            whole.sub_(self.middle)
        whole.mul_(self._wide(scales))
        if self.rounded:
            whole = whole.to(self.dtype).to(torch.float32)
        if self.offsets is not None:
            whole.add_(self._wide(self.at(self.offsets, first, last).to(torch.float32)))
        return whole.view(last - first, -1).to(self.dtype)

    def _wide(self, table: Tensor) -> Tensor:
        return table[..., None] if self.index is None else table[:, self.index]

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        return replace(self.scaling(first, last), codes=self.unpack(first, last))

    def scaling(self, first: int, last: int) -> Codes:
        """Scales and zero points of some rows, without codes."""
        # Each scale with the first of its rows.
        begin, end = -(-first // self.rows_each), -(-last // self.rows_each)
        zeros = None if self.zeros is None else self.zeros[begin:end]
        scales = self.scales[begin:end].to(torch.float32)
        return Codes(torch.empty(0, dtype=torch.uint8), self.levels, scales, zeros)

    def at(self, table: Tensor, first: int, last: int) -> Tensor:
        """The lines of scales, zero points or offsets that serve some rows of the weight."""
        if self.rows_each == 1:
            return table[first:last]
        return table[torch.arange(first, last) // self.rows_each]


def regular(index: Tensor, groups: int) -> Tensor | None:
    """The same groups of columns, as None if they are of equal size, one after another."""
    inputs = len(index)
    if inputs % groups:
        return index
    return None if torch.equal(index, torch.arange(inputs) // (inputs // groups)) else index
