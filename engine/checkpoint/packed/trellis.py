"""The codebooks and the trellis of EXL3: numbers out of a path of bits.

A tile of 16 x 16 weights is a ring of ``256 · K`` bits. A weight is decoded from the 16 bits that
end with its own ``K``, so that neighbours share most of them; with half a bit, weights have ``K``
and ``K + 1`` bits by turns. The 16 bits choose one of 65536 numbers, which are computed.

Source: exllamav3 1.6.5, ``exllamav3_ext/quant/codebook.cuh``, ``exl3_dq.cuh``;
``modules/quant/exl3_lib/quantize.py`` (``tensor_core_perm``).
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

Codebook = Literal["3inst", "mcg", "mul1"]
TILE, WEIGHTS = 16, 256
_FACTORS = {"3inst": 89226354, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}
_SUMMAND = 64248484
_KEPT, _FLIPPED = 0x8FFF8FFF, 0x3B603B60


@functools.cache
def codebook(name: Codebook) -> Tensor:
    """The number of each of 65536 words, float32 values of float16."""
    words = torch.arange(1 << 16) * _FACTORS[name]
    words = (words + (_SUMMAND if name == "3inst" else 0)) & 0xFFFFFFFF
    if name == "mul1":
        total = sum((words >> shift) & 255 for shift in (0, 8, 16, 24))
        assert isinstance(total, Tensor)
        # 1024 + the sum as float16, times 1 / 147.7, less 10.39: exact but for the last rounding.
        factor, summand = _half(torch.tensor([0x1EEE, 0xC931]))
        exact = (total + 1024).to(torch.float32) * factor + summand
    else:
        words = (words & _KEPT) ^ _FLIPPED
        exact = _half(words & 0xFFFF) + _half(words >> 16)
    found: Tensor = exact.to(torch.float16).to(torch.float32)
    return found


def _half(bits: Tensor) -> Tensor:
    """Words of 16 bits as float16, in float32."""
    return bits.to(torch.uint16).view(torch.float16).to(torch.float32)


def decoded(tiles: Tensor, name: Codebook) -> Tensor:
    """The numbers of tiles, float32 ``[tiles, 16, 16]``, inputs by outputs.

    Args:
        tiles: int16 ``[tiles, 16 · K]``.
        name: the codebook.
    """
    count, length = tiles.shape
    # Bits run from the highest of a word of 32 on, so that halves of words change places.
    halves = (tiles.view(count, length // 2, 2).flip(-1).reshape(count, length)).int() & 0xFFFF
    ends = _ends(length)
    last = (ends - 1) // 16
    pairs = (halves[:, (last - 1) % length] << 16) | halves[:, last % length]
    found = (pairs >> (16 * (last + 1) - ends)) & 0xFFFF
    room = torch.empty(count, WEIGHTS)
    room[:, _places()] = codebook(name)[found]
    return room.view(count, TILE, TILE)


def _ends(length: int) -> Tensor:
    """The bit after the last one of each weight of a tile, int32 ``[256]``."""
    each = torch.arange(1, WEIGHTS + 1, dtype=torch.int32)
    whole, half = divmod(length, TILE)
    return each * whole + (each // 2 if half else 0)


@functools.cache
def _places() -> Tensor:
    """The place in a tile of each of its weights, in the order of a tensor core's lanes."""
    lane, each = torch.arange(32)[:, None], torch.arange(8)[None, :]
    row = lane % 4 * 2 + each % 2 + each // 2 % 2 * 8
    return (row * TILE + lane // 4 + each // 4 * 8).flatten()


def rotated(whole: Tensor) -> Tensor:
    """Sylvester's matrix times each column of ``[.., size, columns]``, over the root of its size.

    In float32, by sums and differences whose order is the same on every machine.
    """
    *lead, size, columns = whole.shape
    found, step = whole.to(torch.float32), 1
    while step < size:
        pairs = found.view(*lead, size // (2 * step), 2, step, columns)
        first, second = pairs.select(-3, 0), pairs.select(-3, 1)
        found = torch.stack([first + second, first - second], dim=-3).view(whole.shape)
        step *= 2
    return found.mul_(1 / math.sqrt(size))
