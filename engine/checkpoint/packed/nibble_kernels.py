"""Numbers of 16 bits by codes of four bits, compiled by numba: each group has a table of its own.

What a table holds is not looked at: its bits are copied. Importing this module imports numba;
nothing is compiled before the first call, and the interpreter's lock is not held.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.compiling import compiled

uint8, uint32 = np.uint8, np.uint32

ROWS, WORDS = 64, 4
"""Rows and words of a tile: its lines of words are read once, those of numbers filled at once."""


@compiled(entry=True)
def across(codes: Any, first: int, tables: Any, out: Any) -> None:
    """Rows whose codes lie one after another, the first of two in the lower bits.

    Args:
        codes: uint8 ``[all rows, in / 2]``.
        first: of these rows.
        tables: uint16 ``[rows, groups, 16]``.
        out: uint16 ``[rows, in]``.
    """
    rows, groups = tables.shape[0], tables.shape[1]
    each = codes.shape[1] // groups
    for i in range(rows):
        for g in range(groups):
            table, pairs = tables[i, g], codes[first + i, g * each : (g + 1) * each]
            numbers = out[i, 2 * g * each : 2 * (g + 1) * each]
            for j in range(each):
                numbers[2 * j] = table[pairs[j] & uint8(15)]
                numbers[2 * j + 1] = table[pairs[j] >> uint8(4)]


@compiled(entry=True)
def down(words: Any, first: int, tables: Any, out: Any) -> None:
    """Rows whose codes lie below each other, eight in a word, the first in the lowest bits.

    Args:
        words: uint32 ``[in / 8, all rows]``.
        first: of these rows.
        tables: uint16 ``[rows, groups, 16]``.
        out: uint16 ``[rows, in]``.
    """
    rows, groups = tables.shape[0], tables.shape[1]
    each = words.shape[0] // groups
    for top in range(0, rows, ROWS):
        for g in range(groups):
            for start in range(g * each, (g + 1) * each, WORDS):
                end = min(start + WORDS, (g + 1) * each)
                for i in range(top, min(top + ROWS, rows)):
                    table = tables[i, g]
                    for k in range(start, end):
                        word = words[k, first + i]
                        numbers = out[i, 8 * k : 8 * k + 8]
                        for place in range(8):
                            numbers[place] = table[(word >> uint32(4 * place)) & uint32(15)]
