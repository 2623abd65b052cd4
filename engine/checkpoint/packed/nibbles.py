"""Codes of four bits as they lie on disk, two in a byte, and weights looked up by them.

A group of weights has sixteen values at most. They are computed once, and copied from there by a
compiled loop, which is several times as fast as unpacking codes and computing each weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from engine.checkpoint.packed.unpacking import unpacked

LEVELS = 16
LEAST = 1 << 18
"""Weights that are worth a compiled loop; importing numba takes longer than fewer."""
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Nibbles:
    """The codes of a weight ``[rows, in]``."""

    stored: Tensor
    """Integers ``[rows, …]``, or if they are `down`, int32 ``[in / 8, rows]``."""
    down: bool = False
    """Whether a word holds codes of one row, and words of a row lie below each other."""

    @property
    def inputs(self) -> int:
        """Codes of a row."""
        stored = self.stored
        return 8 * len(stored) if self.down else 2 * stored.shape[1] * stored.itemsize

    @property
    def pairs(self) -> Tensor:
        """Every byte, uint8: all codes, two in each, in no order."""
        return self.stored.contiguous().view(torch.uint8).flatten()

    def unpack(self, first: int, last: int) -> Tensor:
        """Codes of some rows, uint8 ``[rows, in]``."""
        stored = self.stored
        rows = stored[:, first:last].T.contiguous() if self.down else stored[first:last]
        return unpacked(rows, 4, self.inputs)

    def looks_up(self, groups: int, dtype: torch.dtype, rows: int) -> bool:
        """Whether `looked_up` serves: equal groups of whole words, numbers of 16 bits, enough."""
        whole = self.inputs % (8 * groups) == 0 and dtype in _HALVES
        return whole and rows * self.inputs >= LEAST and kernels() is not None

    def looked_up(self, first: int, tables: Tensor) -> Tensor:
        """The entry of a group's table for each code, ``[rows, in]``.

        Args:
            first: of the rows.
            tables: ``[rows, groups, 16]``, of 16 bits each.
        """
        compiled = kernels()
        assert compiled is not None
        out = torch.empty(len(tables), self.inputs, dtype=tables.dtype)
        given = tables.contiguous().view(torch.uint16).numpy(), out.view(torch.uint16).numpy()
        if self.down:
            compiled.down(self.stored.view(torch.uint32).numpy(), first, *given)
        else:
            compiled.across(self.stored.view(torch.uint8).numpy(), first, *given)
        return out


@cache
def kernels() -> ModuleType | None:
    """The compiled loops; None where numba is missing or refuses."""
    try:
        from engine.checkpoint.packed import nibble_kernels

        tables, out = torch.zeros(1, 1, LEVELS, dtype=torch.uint16), torch.zeros(1, 8)
        given = tables.numpy(), out.to(torch.uint16).numpy()
        nibble_kernels.down(torch.zeros(1, 1, dtype=torch.uint32).numpy(), 0, *given)
        nibble_kernels.across(torch.zeros(1, 4, dtype=torch.uint8).numpy(), 0, *given)
    except Exception:  # noqa: BLE001 - numba refuses a processor or a numpy in many ways
        return None
    return nibble_kernels
