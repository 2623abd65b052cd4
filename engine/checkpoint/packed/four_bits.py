"""Weights in codes of four bits as they lie on disk, turned into rows by a compiled loop.

The same weights as `engine.checkpoint.packed.grid.Grid` computes from the same tensors, bit for
bit, several times as fast, and without torch. What the loop does not know is left to `Grid`: other
numbers of bits, tables of values, offsets, weights in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.checkpoint.packed.orders import ACROSS, DOWN, LEVELS, TURNED

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Counted:
    """How often codes occur."""

    total: int
    lowest: int
    """Those that are 0."""
    highest: int
    """Those that are 15."""
    used: Array
    """Which codes occur at all, bool ``[16]``."""


@dataclass(frozen=True)
class FourBits:
    """The codes, scales and zero points of a weight ``[out, in]``."""

    words: Array
    """uint32 ``[lines, columns]``, contiguous."""
    order: int
    """`ACROSS`, `DOWN` or `TURNED`."""
    height: int
    width: int
    dtype: str
    """Of the weight and its scales, ``float16`` or ``bfloat16``."""
    scales: Array
    """float32 ``[out, groups]``, exactly as stored; one row of them may serve all."""
    zeros: Array
    """int16, as many; all the same where the layout has none."""
    size: int
    """Columns of a group, the last of which may be shorter; 0 where `index` says which is whose."""
    index: Array
    """The group of each column, int32 ``[in]``; empty for groups of one size."""
    has_zeros: bool = True
    """Whether zero points are stored."""

    def fill(self, first: int, out: Array) -> None:
        """Dequantise rows from ``first`` on; from any thread.

        Args:
            first: of the rows.
            out: float32 ``[rows, in]``, contiguous. Receives numbers of `dtype`.
        """
        compiled = _kernels_in_use()
        lines, tile = len(self.words), min(len(out), compiled.TILE)
        shape = {ACROSS: (0, 0), DOWN: (tile, lines), TURNED: (tile // 8 + 2, lines)}[self.order]
        turned = np.empty(shape, np.uint32)
        pairs = turned if self.order == DOWN else self.words
        compiled.fill(
            self.words, self.order, first, self.scales, self.zeros, self.size, self.index,
            self.dtype == "bfloat16", turned, pairs.view(np.uint8),
            np.empty(self.width + 7, np.uint8), np.empty(self.width, np.float32), out,
        )  # fmt: skip

    def count(self) -> Counted:
        """How often codes occur in the whole weight."""
        compiled = _kernels_in_use()
        found = np.zeros(4, np.int64)
        lines, length = self.words.shape
        whole, rest = divmod(self.width, 8)
        if self.order == ACROSS:
            compiled.count(self.words, 0, lines, 0, whole, 8, found)
            compiled.count(self.words, 0, lines, whole, whole + bool(rest), rest, found)
        elif self.order == DOWN:
            compiled.count(self.words, 0, whole, 0, length, 8, found)
            compiled.count(self.words, whole, whole + bool(rest), 0, length, rest, found)
        else:
            compiled.count(self.words, 0, lines, 0, length, 8, found)
        total, lowest, highest, seen = map(int, found)
        used = np.array([bool(seen >> code & 1) for code in range(LEVELS)])
        return Counted(total, lowest, highest, used)


def four_bits(
    words: Array,
    order: int,
    shape: tuple[int, int],
    scales: Array,
    dtype: str,
    index: Array,
    zeros: Array | None = None,
    middle: int = 0,
) -> FourBits:
    """A weight in codes of four bits.

    Args:
        words: the bits of integers, in one of the orders.
        order: which.
        shape: ``[out, in]``.
        scales: their bits, uint16 ``[out, groups]`` or ``[1, groups]``.
        dtype: of the scales and of the weight, ``float16`` or ``bfloat16``.
        index: the group of each column.
        zeros: zero points, integers, as many as scales; None for none.
        middle: the code of zero, where there are none.
    """
    wide = widened(np.ascontiguousarray(scales), dtype)
    points = np.full(wide.shape, middle, np.int16) if zeros is None else zeros.astype(np.int16)
    size = group_size(index)
    return FourBits(
        words=np.ascontiguousarray(words).view(np.uint32),
        order=order,
        height=shape[0],
        width=shape[1],
        dtype=dtype,
        scales=wide,
        zeros=np.ascontiguousarray(points),
        size=size,
        index=np.empty(0, np.int32) if size else np.ascontiguousarray(index, np.int32),
        has_zeros=zeros is not None,
    )


def group_size(index: Array) -> int:
    """The size of groups of columns that follow one another, all but the last equal; else 0."""
    others = np.flatnonzero(index != index[0]) if len(index) else index
    size = int(others[0]) if len(others) else len(index)
    return size if np.array_equal(index, np.arange(len(index)) // max(1, size)) else 0


def nibbles(words: Array, order: tuple[int, ...] = tuple(range(8))) -> Array:
    """Codes of words, uint8 ``[..., 8 · words]``.

    Args:
        words: integers of 32 bits ``[..., words]``.
        order: which of every eight codes each place of a word holds, the lowest bits first.
    """
    whole = words.view(np.uint32)
    codes = np.empty((*whole.shape, 8), np.uint8)
    for place, code in enumerate(order):
        codes[..., code] = whole >> np.uint32(4 * place) & np.uint32(15)
    return codes.reshape(*whole.shape[:-1], -1)


def widened(bits: Array, dtype: str) -> Array:
    """Stored numbers as float32, from their bits: uint16, or for float32 themselves as those."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    found: Array = bits.view(dtype).astype(np.float32)
    return found


@cache
def kernels() -> ModuleType | None:
    """The compiled loops; None where numba is missing or refuses."""
    try:
        # Compiled or loaded here, once, rather than in every thread.
        words, index = np.zeros((1, 1), np.uint32), np.zeros(8, np.int32)
        some = four_bits(words, ACROSS, (1, 8), np.zeros((1, 1), np.uint16), "float16", index)
        some.fill(0, np.empty((1, 8), np.float32))
        some.count()
    except Exception:  # noqa: BLE001 - numba refuses a processor or a numpy in many ways
        return None
    return _kernels_in_use()


def _kernels_in_use() -> ModuleType:
    from engine.checkpoint.packed import four_bit_kernels

    return four_bit_kernels
