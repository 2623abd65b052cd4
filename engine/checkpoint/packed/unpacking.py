"""Codes out of packed words, a few rows at a time.

Rows are unpacked along their last dimension; a layout that packs along another one turns its words
first, which are a fraction of the codes.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Widths of the planes of GPTQModel's planar layout by bits, the lowest bits first."""


def unpacked(words: Tensor, bits: int, count: int, *, dense: bool = True) -> Tensor:
    """Codes from 0 on, uint8 ``[rows, count]``, the first one in the lowest bits.

    Args:
        words: integers of any width, ``[rows, words]``, read as a stream of little-endian bits.
        bits: of a code, 1 to 8.
        count: codes in a row.
        dense: whether a code may begin in one word of 32 bits and end in the next; else a word
            holds ``32 // bits`` codes.
    """
    if bits in (1, 2, 4, 8):
        return _of_bytes(words, bits)[:, :count]
    wide = words.contiguous().view(torch.int32)
    if not dense:
        return _fields(wide, bits, 32 // bits)[:, :count]
    rows, length = wide.shape
    blocks = -(-length // bits)
    whole = wide if length == blocks * bits else _padded(wide, blocks * bits)
    block = whole.view(rows, blocks, bits)
    codes = torch.empty(rows, blocks, 32, dtype=torch.uint8)
    mask = (1 << bits) - 1
    for place in range(32):
        word, bit = divmod(place * bits, 32)
        low = (block[:, :, word] >> bit) & (mask if bit + bits <= 32 else (1 << (32 - bit)) - 1)
        if bit + bits > 32:
            low = low | (block[:, :, word + 1] << (32 - bit)) & mask
        codes[:, :, place] = low
    return codes.view(rows, blocks * 32)[:, :count]


def planar(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes of GPTQModel's planar layout: 32 codes are planes of words, low bits first."""
    rows, length = words.shape
    block = words.contiguous().view(rows, length // bits, bits)
    codes, at, shift = torch.zeros(rows, length // bits, 32, dtype=torch.uint8), 0, 0
    for width in _PLANES[bits]:
        plane = block[:, :, at : at + width].reshape(rows, -1)
        codes |= _of_bytes(plane, width).view(rows, length // bits, 32) << shift
        at, shift = at + width, shift + width
    return codes.view(rows, -1)[:, :count]


def _of_bytes(words: Tensor, bits: int) -> Tensor:
    """Codes whose bits divide 8, all of them."""
    assert sys.byteorder == "little"
    whole = words.contiguous().view(torch.uint8)
    if bits == 8:
        return whole
    each, mask = 8 // bits, (1 << bits) - 1
    codes = torch.empty(*whole.shape, each, dtype=torch.uint8)
    for place in range(each):
        torch.bitwise_and(whole >> (place * bits), mask, out=codes[..., place])
    return codes.flatten(-2)


def _fields(wide: Tensor, bits: int, each: int) -> Tensor:
    codes = torch.empty(*wide.shape, each, dtype=torch.uint8)
    for place in range(each):
        codes[..., place] = (wide >> (place * bits)) & ((1 << bits) - 1)
    return codes.flatten(-2)


def _padded(wide: Tensor, length: int) -> Tensor:
    whole = torch.zeros(wide.shape[0], length, dtype=wide.dtype)
    whole[:, : wide.shape[1]] = wide
    return whole
