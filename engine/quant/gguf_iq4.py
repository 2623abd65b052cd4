"""``iq4_nl`` and ``iq4_xs``: 4-bit codes into a fixed table of 16 unevenly spaced values.

``Ŵ = d · table[code]`` in blocks of 32 with a float16 ``d``; ``iq4_xs`` has super-blocks of 256,
``d · (scale − 32)`` with a 6-bit scale for 32 weights. Bytes equal those of llama.cpp
(``quantize_row_iq4_nl_impl`` with 7 tries); ``Ŵ`` equals the ``gguf`` package's reading of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quant.gguf_bytes import half_bytes, interleave, read_half, separate
from engine.quant.gguf_search import SMALLEST, quotient, root, total
from engine.quant.rows import table_lookup

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""``kvalues_iq4nl``."""

SUPER_BLOCKS = {"iq4_nl": 32, "iq4_xs": 256}
_BLOCK = 32
_TRIES = 7
CANDIDATES = [TABLE[0] + attempt for attempt in range(-_TRIES, _TRIES + 1)]
"""What is divided by the peak of a block for an inverse scale."""


def encode(x: Tensor, importance: Tensor | None, super_block: int) -> Tensor:
    """Blocks of float32 ``[rows, in]`` as uint8 ``[rows · in / super_block, bytes]``.

    Args:
        x: The weight.
        importance: Of each input, ``[in]``.
        super_block: 32 for ``iq4_nl``, 256 for ``iq4_xs``.
    """
    blocks = x.reshape(-1, super_block)
    if importance is None:
        weights = blocks * blocks
    else:
        mean_square = total(blocks * blocks, dim=1) * (2 / super_block)
        given = importance.expand_as(x).reshape(-1, super_block)
        weights = given * root(mean_square[:, None] + blocks * blocks)
    columns = blocks.reshape(-1, _BLOCK).T.contiguous()
    scale = _fit(columns, weights.reshape(-1, _BLOCK).T.contiguous())
    if super_block == _BLOCK:
        codes = _nearest(_inverse(scale) * columns)
        return torch.cat([half_bytes(scale), _pack(codes, super_block)], dim=1)
    scales = scale.reshape(-1, super_block // _BLOCK)
    peak = scales.gather(1, scales.abs().argmax(1, keepdim=True))[:, 0]
    d = -peak / 32
    steps = (_inverse(d)[:, None] * scales).nan_to_num_(0, 0, 0).round_().clamp_(-32, 31)
    codes = _nearest(_inverse((d[:, None] * steps).flatten()) * columns)
    stored = (steps + 32).to(torch.uint8)
    high = interleave(stored >> 4, 1, 2)
    low = interleave(stored & 15, 1, 4)
    return torch.cat([half_bytes(d), high, low, _pack(codes, super_block)], dim=1)


def decode(blocks: Tensor, super_block: int) -> Tensor:
    """float32 ``[blocks, super_block]`` of blocks of bytes."""
    codes = separate(blocks[:, -super_block // 2 :], 16, 4)
    table = torch.tensor(TABLE, dtype=torch.float32)
    values = table_lookup(table, codes).view(len(blocks), -1, _BLOCK)
    d = read_half(blocks[:, :2])
    if super_block > _BLOCK:
        high, low = separate(blocks[:, 2:4], 1, 2), separate(blocks[:, 4:8], 1, 4)
        d = d * ((high << 4 | low).to(torch.float32) - 32)
    return (d[..., None] * values).flatten(1)


def _fit(x: Tensor, weights: Tensor) -> Tensor:
    """Scale of least weighted squared error for every column of ``[32, blocks]``."""
    peak = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    table = torch.tensor(TABLE, dtype=torch.float32)

    def sums(inverse: Tensor) -> tuple[Tensor, Tensor]:
        values = table_lookup(table, _nearest(inverse * x))
        weighted = weights * values
        return total(weighted * x), total(weighted * values)

    lowest = torch.tensor(float(TABLE[0]), device=x.device)
    sum_qx, sum_q2 = sums(quotient(1, -peak / lowest))
    scale = torch.where(sum_q2 > 0, sum_qx / sum_q2, 0)
    gain = scale * sum_qx
    for candidate in CANDIDATES:
        sum_qx, sum_q2 = sums(quotient(candidate, peak))
        better = (sum_q2 > 0) & (sum_qx * sum_qx > gain * sum_q2)
        scale = torch.where(better, sum_qx / sum_q2, scale)
        gain = torch.where(better, scale * sum_qx, gain)
    return scale.masked_fill(peak.abs() < SMALLEST, 0)


def _nearest(scaled: Tensor) -> Tensor:
    """int32 indices of the nearest values of `TABLE`; a tie goes to the greater one.

    Midpoints between values are multiples of a half, so half units are looked up.
    """
    places = (scaled * 2).nan_to_num_(0).floor_().clamp_(-256, 255).to(torch.int32) + 256
    return table_lookup(nearest_of_halves(), places)


def nearest_of_halves() -> Tensor:
    """int32 ``[512]``: the index of the value of `TABLE` nearest to each half from −128 on."""
    halves = torch.arange(-256, 256, dtype=torch.float32) / 2
    values = torch.tensor(TABLE, dtype=torch.float32)
    return torch.bucketize(halves, (values[:-1] + values[1:]) / 2, right=True, out_int32=True)


def _inverse(scale: Tensor) -> Tensor:
    inverse = quotient(1, scale)
    return inverse.masked_fill(scale == 0, 0)


def _pack(codes: Tensor, super_block: int) -> Tensor:
    return interleave(codes.to(torch.uint8).T.reshape(-1, super_block), 16, 4)
