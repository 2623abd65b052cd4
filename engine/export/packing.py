"""Packs integer codes into 32-bit words, like compressed-tensors' ``pack-quantized``."""

from __future__ import annotations

import torch
from torch import Tensor


def codes_per_word(bits: int) -> int:
    """How many codes fit into a 32-bit word; unused bits, at the top, are 0."""
    return 32 // bits


def words_for(codes: int, bits: int) -> int:
    """How many words this many codes need; unused places in the last one are 0."""
    return -(-codes // codes_per_word(bits))


def packed(codes: Tensor, bits: int) -> Tensor:
    """Signed codes ``[rows, columns]`` as int32 words ``[rows, words_for(columns, bits)]``.

    A code is stored as ``code + 2^(bits−1)``, the first of a word in its lowest bits. Equal to
    ``pack_to_int32`` of compressed-tensors.

    Args:
        codes: int8, from ``−2^(bits−1)`` to ``2^(bits−1) − 1``.
        bits: 1 to 8.
    """
    rows, columns = codes.shape
    words = torch.zeros(rows, words_for(columns, bits), dtype=torch.int32, device=codes.device)
    each = codes_per_word(bits)
    for place in range(min(each, columns)):
        part = codes[:, place::each].to(torch.int32).add_(1 << (bits - 1))
        words[:, : part.shape[1]] |= part << (place * bits)
    return words
