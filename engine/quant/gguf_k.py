"""K-quants: ``q2_k`` to ``q6_k``, super-blocks of 256 whose scales are quantised themselves.

``q2_k``, ``q4_k`` and ``q5_k`` are ``Ŵ = d · scale · code − dmin · minimum``, ``q3_k`` and ``q6_k``
are ``Ŵ = d · scale · (code − half)``; ``d`` and ``dmin`` are float16, scales and minima of 16 or 32
weights take 4, 6 or 8 bits. Bytes equal those of llama.cpp (``quantize_row_q2_K_ref`` and its kin,
``…_impl`` with an importance matrix); ``Ŵ`` equals the ``gguf`` package's reading of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quant.gguf_bytes import as_half, half_bytes, interleave, read_half, separate
from engine.quant.gguf_search import (
    SMALLEST,
    candidates,
    fit_offsets,
    fit_positive,
    fit_symmetric,
    quotient,
    refine_symmetric,
    root,
    total,
)

SUPER_BLOCK = 256
NAMES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


@dataclass(frozen=True)
class _Search:
    """Candidates of a type with minima: first, step, number, and how errors compare."""

    group: int
    bits: int
    top: int
    """Greatest quantised scale and minimum."""
    start: float
    steps: int
    absolute: bool

    @property
    def candidates(self) -> list[float]:
        """Of the inverse scale, times the range of the weights."""
        return candidates(self.start, STEP, (1 << self.bits) - 1, range(self.steps + 1))


STEP = 0.1
OFFSETS = {
    "q2_k": _Search(16, 2, 15, -0.5, 15, absolute=True),
    "q4_k": _Search(32, 4, 63, -1.0, 20, absolute=False),
    "q5_k": _Search(32, 5, 63, -0.5, 15, absolute=False),
}


def encode(x: Tensor, importance: Tensor | None, name: str) -> Tensor:
    """Super-blocks of float32 ``[rows, in]`` as uint8 ``[rows · in / 256, bytes]``.

    Args:
        x: The weight.
        importance: Of each input, ``[in]``, as an importance matrix has it.
        name: ``q2_k`` to ``q6_k``.
    """
    blocks = x.reshape(-1, SUPER_BLOCK)
    given = None if importance is None else importance.expand_as(x).reshape(-1, SUPER_BLOCK)
    if name in OFFSETS:
        return _encode_offsets(blocks, OFFSETS[name], given)
    return _encode_q3(blocks, given) if name == "q3_k" else _encode_q6(blocks, given)


def decode(blocks: Tensor, name: str) -> Tensor:
    """float32 ``[blocks, 256]`` of super-blocks of bytes."""
    if name in OFFSETS:
        return _decode_offsets(blocks, OFFSETS[name])
    return _decode_q3(blocks) if name == "q3_k" else _decode_q6(blocks)


# --- with minima: q2_k, q4_k, q5_k ---------------------------------------------------------------


def _encode_offsets(blocks: Tensor, kind: _Search, importance: Tensor | None) -> Tensor:
    x = _columns(blocks, kind.group)
    top = (1 << kind.bits) - 1
    if importance is None:
        weights = x.abs()
        if kind.bits > 2:
            weights += root(total(x * x) / kind.group)
        fit = fit_offsets(x, weights, top, kind.start, STEP, kind.steps, kind.absolute)
        scale, minimum = (_per_block(part, kind.group) for part in (fit.scale, fit.minimum))
        d, scales = _largest(scale, kind.top)
        dmin, minima = _largest(minimum, kind.top)
    else:
        weights = _informed(blocks, importance, kind.group, 1 if kind.bits == 2 else 2)
        fit = fit_offsets(x, weights, top, -0.9, 0.05, 36, absolute=False)
        of_groups = _per_block(total(weights), kind.group).T
        found = fit_positive(_per_block(fit.scale, kind.group).T, of_groups, kind.top)
        lowest = fit_positive(_per_block(fit.minimum, kind.group).T, of_groups, kind.top)
        d, scales = found.scale, found.codes.T.to(torch.uint8)
        dmin, minima = lowest.scale, lowest.codes.T.to(torch.uint8)
    if kind.bits == 2:
        packed = scales | minima << 4
        scales, minima = packed & 15, packed >> 4
    step = (as_half(d)[:, None] * scales).flatten()
    floor = (as_half(dmin)[:, None] * minima).flatten()
    codes = ((x + floor) / step).round_().clamp_(0, top)
    codes = _whole(torch.where(step == 0, fit.codes, codes), kind.group)
    ends = [half_bytes(d), half_bytes(dmin)]
    if kind.bits == 2:
        return torch.cat([packed, interleave(codes, 32, 2), *ends], dim=1)
    parts = [*ends, _pack_6_bits(scales, minima)]
    if kind.bits == 5:
        parts.append(interleave(codes >> 4, 32, 1))
    return torch.cat([*parts, interleave(codes & 15, 32, 4)], dim=1)


def _decode_offsets(blocks: Tensor, kind: _Search) -> Tensor:
    if kind.bits == 2:
        scales, minima = blocks[:, :16] & 15, blocks[:, :16] >> 4
        d, dmin = read_half(blocks[:, 80:82]), read_half(blocks[:, 82:84])
        codes = separate(blocks[:, 16:80], 32, 2)
    else:
        d, dmin = read_half(blocks[:, :2]), read_half(blocks[:, 2:4])
        scales, minima = _unpack_6_bits(blocks[:, 4:16])
        codes = separate(blocks[:, -128:], 32, 4)
        if kind.bits == 5:
            codes |= separate(blocks[:, 16:48], 32, 1) << 4
    groups = codes.to(torch.float32).reshape(len(blocks), -1, kind.group)
    return ((d * scales)[..., None] * groups - (dmin * minima)[..., None]).flatten(1)


def _largest(numbers: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The step ``[blocks]`` that brings the largest number to ``top``, and uint8 codes."""
    largest = numbers.amax(1).clamp(min=0) + 0.0  # not −0, whose bytes differ
    inverse = quotient(top, largest).masked_fill(largest == 0, 0)
    codes = (inverse[:, None] * numbers).nan_to_num_(0, 0, 0).round_().to(torch.int32) & 255
    d = largest / torch.tensor(float(top), device=numbers.device)
    return d, (codes.clamp(max=top) if top == 63 else codes).to(torch.uint8)


# --- without minima: q3_k, q6_k ------------------------------------------------------------------


def _encode_q3(blocks: Tensor, importance: Tensor | None) -> Tensor:
    x = _columns(blocks, 16)
    if importance is None:
        fit = refine_symmetric(x, 4)
        peak, inverse = _inverse_of_peak(_per_block(fit.scale, 16), -32.0)
        scaled = (inverse[:, None] * _per_block(fit.scale, 16)).nan_to_num_(0, 0, 0).round_()
        scales = (scaled.clamp_(-32, 31) + 32).to(torch.uint8)
        scales = scales.masked_fill((peak == 0)[:, None], 0)
        d = quotient(1, inverse).masked_fill(peak == 0, 0)
    else:
        weights = _informed(blocks, importance, 16, 2)
        fit = fit_symmetric(x, weights, 4)
        found = fit_symmetric(_per_block(fit.scale, 16).T, _per_block(total(weights), 16).T, 32)
        d, scales = found.scale, found.codes.T.to(torch.uint8)
    step = (as_half(d)[:, None] * (scales.to(torch.float32) - 32)).flatten()
    codes = (x / step).round_().clamp_(-4, 3) + 4
    codes = _whole(torch.where(step == 0, fit.codes, codes), 16)
    low = interleave(scales & 15, 8, 4)
    packed_scales = torch.cat([low, interleave(scales >> 4, 4, 2)], dim=1)
    high = interleave(codes >> 2, 32, 1)
    return torch.cat([high, interleave(codes & 3, 32, 2), packed_scales, half_bytes(d)], dim=1)


def _decode_q3(blocks: Tensor) -> Tensor:
    low, high = separate(blocks[:, 96:104], 8, 4), separate(blocks[:, 104:108], 4, 2)
    step = read_half(blocks[:, 108:]) * ((low | high << 4).to(torch.float32) - 32)
    codes = separate(blocks[:, 32:96], 32, 2) | separate(blocks[:, :32], 32, 1) << 2
    groups = codes.to(torch.float32).reshape(len(blocks), 16, 16) - 4
    return (step[..., None] * groups).flatten(1)


def _encode_q6(blocks: Tensor, importance: Tensor | None) -> Tensor:
    x = _columns(blocks, 16)
    weights = x * x if importance is None else _columns(importance, 16)
    fit = fit_symmetric(x, weights, 32)
    peak, inverse = _inverse_of_peak(_per_block(fit.scale, 16), -128.0)
    empty = peak.abs() < SMALLEST
    scaled = (inverse[:, None] * _per_block(fit.scale, 16)).nan_to_num_(0, 0, 0).round_()
    scales = scaled.clamp_(max=127).masked_fill(empty[:, None], 0)
    d = quotient(1, inverse).masked_fill(empty, 0)
    step = (as_half(d)[:, None] * scales).flatten()
    codes = (x / step).round_().clamp_(-32, 31) + 32
    codes = _whole(torch.where(step == 0, fit.codes, codes), 16).masked_fill(empty[:, None], 0)
    low, high = interleave(codes & 15, 64, 4), interleave(codes >> 4, 32, 2)
    signed = scales.to(torch.int8).view(torch.uint8)
    return torch.cat([low, high, signed, half_bytes(d)], dim=1)


def _decode_q6(blocks: Tensor) -> Tensor:
    codes = separate(blocks[:, :128], 64, 4) | separate(blocks[:, 128:192], 32, 2) << 4
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    groups = codes.to(torch.float32).reshape(len(blocks), 16, 16) - 32
    return ((read_half(blocks[:, 208:]) * scales)[..., None] * groups).flatten(1)


def _inverse_of_peak(scales: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """The scale of the greatest magnitude in every block, and what brings it to ``lowest``."""
    peak = scales.gather(1, scales.abs().argmax(1, keepdim=True))[:, 0]
    return peak, quotient(lowest, peak)


# --- layout --------------------------------------------------------------------------------------


def _columns(blocks: Tensor, group: int) -> Tensor:
    """``[blocks, 256]`` as ``[group, groups]``."""
    return blocks.reshape(-1, group).T.contiguous()


def _whole(codes: Tensor, group: int) -> Tensor:
    """``[group, groups]`` as uint8 ``[blocks, 256]``."""
    return codes.nan_to_num(0).to(torch.uint8).T.reshape(-1, SUPER_BLOCK)


def _per_block(numbers: Tensor, group: int) -> Tensor:
    """Numbers of groups as ``[blocks, groups]``."""
    return numbers.reshape(-1, SUPER_BLOCK // group)


def _informed(blocks: Tensor, importance: Tensor, group: int, factor: int) -> Tensor:
    """``importance · √(factor · mean(w²) + w²)``, ``[group, groups]``."""
    mean_square = factor * total(blocks * blocks, dim=1) / SUPER_BLOCK
    return _columns(importance * root(mean_square[:, None] + blocks * blocks), group)


def _pack_6_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight scales and eight minima of 6 bits in 12 bytes, as ``get_scale_min_k4`` reads them."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    third = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    return torch.cat([first, second, third], dim=1)


def _unpack_6_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, third & 15 | (first >> 6) << 4], dim=1)
    minima = torch.cat([second & 63, third >> 4 | (second >> 6) << 4], dim=1)
    return scales, minima
