"""``q4_0``, ``q4_1``, ``q5_0``, ``q5_1`` and ``q8_0``: blocks of 32 with a float16 scale.

``Ŵ = d · (code − half)``, or ``d · code + m`` for the types with a minimum. Bytes equal those of
the ``gguf`` package, and with an importance matrix those of llama.cpp (``quantize_row_q4_0_impl``
and its kin).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quant.gguf_bytes import half_bytes, interleave, read_half, separate
from engine.quant.gguf_search import fit_offsets, fit_symmetric, quotient, root, total

BLOCK = 32
NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def encode(x: Tensor, importance: Tensor | None, bits: int, offset: bool) -> Tensor:
    """Blocks of a weight as bytes.

    Args:
        x: float32 ``[rows, in]``.
        importance: Of each input, ``[in]``; ``q8_0`` takes no notice of it.
        bits: 4, 5 or 8.
        offset: Whether the type has a minimum.

    Returns:
        uint8 ``[rows · in / 32, bytes]``.
    """
    blocks = x.reshape(-1, BLOCK)
    if bits == 8:
        return _encode_8(blocks)
    if importance is not None:
        numbers, codes = _searched(x, bits, offset, importance)
    elif offset:
        numbers, codes = _with_minimum(blocks, bits)
    else:
        numbers, codes = _symmetric(blocks, bits)
    codes = codes.to(torch.uint8)
    parts = [half_bytes(number) for number in numbers]
    if bits == 5:
        parts.append(interleave((codes >> 4).reshape(-1, 4, 8).transpose(1, 2).flatten(1), 4, 1))
    return torch.cat([*parts, interleave(codes & 15, 16, 4)], dim=1)


def decode(blocks: Tensor, bits: int, offset: bool) -> Tensor:
    """float32 ``[blocks, 32]`` of blocks of bytes."""
    d, rest = read_half(blocks[:, :2]), blocks[:, 2:]
    if bits == 8:
        return rest.contiguous().view(torch.int8).to(torch.float32) * d
    if offset:
        m, rest = read_half(rest[:, :2]), rest[:, 2:]
    codes = separate(rest[:, -16:], 16, 4)
    if bits == 5:
        high = separate(rest[:, :4], 4, 1).reshape(-1, 8, 4).transpose(1, 2).flatten(1)
        codes |= high << 4
    values = codes.to(torch.float32)
    return d * values + m if offset else d * (values - (1 << (bits - 1)))


def _encode_8(blocks: Tensor) -> Tensor:
    d = blocks.abs().amax(1) / torch.tensor(127.0, device=blocks.device)
    scaled = blocks * _inverse(d)[:, None]
    floor = scaled.abs().floor()
    magnitude = floor + (2 * (scaled.abs() - floor)).floor()  # a half goes away from 0
    codes = (scaled.sign() * magnitude).to(torch.int8)
    return torch.cat([half_bytes(d), codes.view(torch.uint8)], dim=1)


def _symmetric(blocks: Tensor, bits: int) -> tuple[list[Tensor], Tensor]:
    half = 1 << (bits - 1)
    peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))[:, 0]
    d = peak / torch.tensor(-float(half), device=blocks.device)
    codes = (blocks * _inverse(d)[:, None] + (half + 0.5)).trunc_().clamp_(0, 2 * half - 1)
    return [d], codes


def _with_minimum(blocks: Tensor, bits: int) -> tuple[list[Tensor], Tensor]:
    top = (1 << bits) - 1
    lo, hi = blocks.aminmax(dim=1)
    d = (hi - lo) / torch.tensor(float(top), device=blocks.device)
    codes = ((blocks - lo[:, None]) * _inverse(d)[:, None] + 0.5).trunc_().clamp_(0, top)
    return [d, lo], codes


def _searched(
    x: Tensor, bits: int, offset: bool, importance: Tensor
) -> tuple[list[Tensor], Tensor]:
    count = torch.tensor(float(x.shape[1]), device=x.device)
    mean_square = (total(x * x, dim=1) / count)[:, None]
    weights = (importance * root(mean_square + x * x)).reshape(-1, BLOCK).T.contiguous()
    columns = x.reshape(-1, BLOCK).T.contiguous()
    if offset:
        found = fit_offsets(columns, weights, (1 << bits) - 1, -0.9, 0.05, 36, absolute=False)
        return [found.scale, -found.minimum], found.codes.T
    fit = fit_symmetric(columns, weights, 1 << (bits - 1))
    return [fit.scale], fit.codes.T


def _inverse(d: Tensor) -> Tensor:
    """``1 / d``, 0 where ``d`` is 0 or so small that a code would not be a number."""
    inverse = quotient(1, d)
    return inverse.masked_fill(inverse.isinf(), 0)
