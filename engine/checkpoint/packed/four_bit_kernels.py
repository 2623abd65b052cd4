"""Rows out of packed codes of four bits, and counts of these codes, compiled by numba.

A row goes from words to weights in the processor's cache: ``(code - zero) · scale`` in float32,
operation by operation as `engine.checkpoint.packed.grid` has it, then rounded to 16 bits as torch
rounds, to nearest even. Importing this module imports numba; nothing is compiled before the first
call. Nothing is allocated here, and the interpreter's lock is not held.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.checkpoint.packed.orders import DOWN, LEVELS, TURNED
from engine.compiling import compiled, fabs

float32, int64, uint8, uint32 = np.float32, np.int64, np.uint8, np.uint32

TILE = 128
"""Rows whose words are turned at a time."""
LINES = 16
"""Lines of words that are turned at a time: what a line of the cache holds of the result."""
_LEAST, _MOST = 2.0**-14, 65504.0
"""The least normal number of float16, and the greatest."""


@compiled()
def _turn(words: Any, left: int, out: Any) -> None:
    """Columns of words from ``left`` on, as rows."""
    for top in range(0, out.shape[1], LINES):
        bottom = top + LINES if top + LINES < out.shape[1] else out.shape[1]
        for i in range(out.shape[0]):
            row = out[i]
            for k in range(top, bottom):
                row[k] = words[k, left + i]


@compiled()
def _unpack(pairs: Any, codes: Any) -> None:
    """Codes of bytes, the first of two in the lower bits."""
    for j in range(pairs.size):
        codes[2 * j] = pairs[j] & uint8(15)
        codes[2 * j + 1] = pairs[j] >> uint8(4)


@compiled()
def _unpack_place(words: Any, place: int, codes: Any) -> None:
    """The code of each word at one place of its eight."""
    shift = uint32(4 * place)
    for j in range(words.size):
        codes[j] = uint8((words[j] >> shift) & uint32(15))


@compiled()
def _by_group(codes: Any, scales: Any, zeros: Any, size: int, out: Any) -> None:
    """Weights of a row whose groups are ``size`` columns, one after another."""
    for g in range(scales.size):
        scale, zero = scales[g], float32(zeros[g])
        part, weights = codes[g * size : (g + 1) * size], out[g * size : (g + 1) * size]
        for j in range(part.size):
            weights[j] = (float32(part[j]) - zero) * scale


@compiled()
def _by_index(codes: Any, scales: Any, zeros: Any, index: Any, out: Any) -> None:
    """Weights of a row whose columns have a group each."""
    for j in range(out.size):
        out[j] = (float32(codes[j]) - float32(zeros[index[j]])) * scales[index[j]]


@compiled()
def _ordinary(scales: Any, zeros: Any) -> bool:
    """Whether all weights of a row are 0 or normal numbers of float16, from its scales."""
    for g in range(scales.size):
        size = fabs(scales[g])
        reach = size * (float32(LEVELS - 1) + fabs(float32(zeros[g])))
        if not (size >= float32(_LEAST) and reach <= float32(_MOST)):
            return False
    return True


@compiled()
def _round(out: Any, low: Any, half: Any, kept: Any) -> None:
    """Drop the ``low`` last bits of float32 numbers, to nearest even.

    All but denormal ones; a NaN of 16 bits has none of these bits, and stays one.
    """
    bits = out.view(uint32)
    for j in range(out.size):
        odd = uint32((bits[j] >> low) & uint32(1))
        bits[j] = uint32(bits[j] + half + odd) & kept


@compiled()
def _round_to_half(out: Any, steps: Any) -> None:
    """Round float32 numbers, whatever they are, to those of float16.

    numba widens what two numbers of 32 bits give; narrowed again at once, eight are done together.
    """
    bits, small = out.view(uint32), steps.view(uint32)
    for j in range(out.size):  # below 2^-14 there are multiples of 2^-24, as there are from .5 to 1
        steps[j] = (fabs(out[j]) + float32(0.5)) - float32(0.5)
    for j in range(out.size):
        size = uint32(bits[j] & uint32(0x7FFFFFFF))
        odd = uint32((size >> uint32(13)) & uint32(1))
        rounded = uint32(uint32(size + uint32(0xFFF) + odd) & uint32(0xFFFFE000))
        rounded = uint32(small[j] if size < uint32(113 << 23) else rounded)
        rounded = uint32(uint32(0x7F800000) if fabs(out[j]) >= float32(65520) else rounded)
        bits[j] = uint32(bits[j] & uint32(0x80000000)) | rounded


@compiled(entry=True)
def fill(
    words: Any,
    order: int,
    first: int,
    scales: Any,
    zeros: Any,
    size: int,
    index: Any,
    brain: bool,
    turned: Any,
    pairs: Any,
    codes: Any,
    steps: Any,
    out: Any,
) -> None:
    """Rows from ``first`` on.

    Args:
        words: uint32, in one of the orders of `engine.checkpoint.packed.orders`.
        order: which.
        first: of these rows.
        scales: float32 ``[all rows, groups]``; one row of them may serve all.
        zeros: int16, as many.
        size: columns of a group; 0 where ``index`` says the group of each.
        index: int32 ``[in]``, or empty.
        brain: whether weights are rounded to bfloat16, not float16.
        turned: uint32, scratch, a line for each row or each column of words of a tile; none for
            `ACROSS`.
        pairs: the bytes of words that hold rows, uint8: those of ``turned`` if it is `DOWN`.
        codes: uint8, scratch, as many as the words of a row hold.
        steps: float32 ``[in]``, scratch.
        out: float32 ``[rows, in]``, receives the weights.
    """
    width = out.shape[1]
    low = uint32(16) if brain else uint32(13)
    half = uint32(0x7FFF) if brain else uint32(0xFFF)
    kept = uint32(0xFFFF0000) if brain else uint32(0xFFFFE000)
    for top in range(0, out.shape[0], TILE):
        rows, begin = out.shape[0] - top, first + top
        rows = TILE if rows > TILE else rows
        left = begin // 8 if order == TURNED else begin
        right = (begin + rows + 7) // 8 if order == TURNED else begin + rows
        here = turned[: right - left]
        if here.shape[0] > 0:
            _turn(words, left, here)
        for i in range(rows):
            row, weights = begin + i, out[top + i]
            if order == TURNED:
                # Of every eight rows, the places hold 0 2 4 6 1 3 5 7.
                place = (row % 8) // 2 + 4 * (row % 2)
                _unpack_place(here[row // 8 - left], place, codes)
            else:
                _unpack(pairs[i if order == DOWN else row], codes)
            line = row if scales.shape[0] > 1 else 0
            scale, zero = scales[line], zeros[line]
            if size > 0:
                _by_group(codes[:width], scale, zero, size, weights)
            else:
                _by_index(codes[:width], scale, zero, index, weights)
            if brain or _ordinary(scale, zero):
                _round(weights, low, half, kept)
            else:
                _round_to_half(weights, steps)


@compiled()
def _seen(words: Any, nibbles: int) -> Any:
    """Which codes occur, a bit for each."""
    found = uint32(0)
    for j in range(words.size):
        for place in range(nibbles):
            found |= uint32(1) << ((words[j] >> uint32(4 * place)) & uint32(15))
    return found


@compiled()
def _ends(words: Any, mask: Any) -> tuple[Any, Any]:
    """How many codes are 0, and how many 15, of the places in ``mask``."""
    some, full = int64(0), int64(0)
    for j in range(words.size):
        word = words[j]
        two, three, four = word >> uint32(1), word >> uint32(2), word >> uint32(3)
        any_bit, all_bits = (word | two | three | four) & mask, word & two & three & four & mask
        some += int64(uint32(any_bit * uint32(0x11111111)) >> uint32(28))
        full += int64(uint32(all_bits * uint32(0x11111111)) >> uint32(28))
    return some, full


@compiled(entry=True)
def count(
    words: Any, top: int, bottom: int, left: int, right: int, nibbles: int, found: Any
) -> None:
    """Count the first codes of words ``[top:bottom, left:right]``.

    Args:
        words: uint32.
        top: first line of words; so on.
        bottom: past the last.
        left: first column of words.
        right: past the last.
        nibbles: codes that each word holds, up to 8.
        found: int64 ``[4]``, to which is added: codes, those that are 0, those that are 15; and in
            the last, a bit for each code that occurs.
    """
    mask = uint32(0x11111111) >> uint32(4 * (8 - nibbles))
    for i in range(top, bottom):
        line = words[i, left:right]
        some, full = _ends(line, mask)
        found[0] += nibbles * line.size
        found[1] += nibbles * line.size - some
        found[2] += full
        if found[3] != (1 << LEVELS) - 1:
            found[3] |= int64(_seen(line, nibbles))
