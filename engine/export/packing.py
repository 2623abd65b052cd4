"""Packs integer codes into 32-bit words, like compressed-tensors' ``pack-quantized``.

There are two packings under this name. Up to 0.17.1 a word holds as many whole codes as fit; from
0.18 on codes follow one another without a gap, so that 32 of them are as many words as they have
bits. They are the same where the bits divide 32; for 3, 5, 6 and 7 bits each version reads the
other's words without an error, and other values from them. What the installed version reads is
written.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

LAST_PADDED = "0.17.1"
"""The last version that leaves bits of a word unused."""
FIRST_DENSE = "0.18.0"


@cache
def is_dense() -> bool:
    """Whether the installed compressed-tensors packs without gaps, as every newer one does."""
    try:
        installed = version("compressed-tensors")
    except PackageNotFoundError:
        return True
    major, minor = (int(part) for part in installed.split(".")[:2])
    return (major, minor) >= (0, 18)


def packing_version() -> str:
    """The version of compressed-tensors that defines what is written."""
    return FIRST_DENSE if is_dense() else LAST_PADDED


def words_for(codes: int, bits: int, *, dense: bool) -> int:
    """How many words this many codes need; what is not used of the last one is 0."""
    return -(-codes * bits // 32) if dense else -(-codes // (32 // bits))


def packed(codes: Tensor, bits: int, *, dense: bool) -> Tensor:
    """Signed codes ``[rows, columns]`` as int32 words ``[rows, words_for(columns, bits)]``.

    A code is stored as ``code + 2^(bits−1)``, the first of a word in its lowest bits. Equal to
    ``pack_to_int32`` of compressed-tensors.

    Args:
        codes: int8, from ``−2^(bits−1)`` to ``2^(bits−1) − 1``.
        bits: 1 to 8.
        dense: without gaps, as from 0.18 on.
    """
    rows, columns = codes.shape
    words = torch.zeros(
        rows, words_for(columns, bits, dense=dense), dtype=torch.int32, device=codes.device
    )
    # After so many codes, that is so many words, a code begins with a word again.
    each, step = (32, bits) if dense else (32 // bits, 1)
    for place in range(min(each, columns)):
        part = codes[:, place::each].to(torch.int32).add_(1 << (bits - 1))
        word, bit = divmod(place * bits, 32)
        words[:, word::step][:, : part.shape[1]] |= part << bit
        if bit + bits > 32:
            words[:, word + 1 :: step][:, : part.shape[1]] |= part >> (32 - bit)
    return words
