"""``iq2`` and ``iq3``: magnitudes of 8 or 4 weights as a point of a grid, and their signs.

``Ŵ = d · (2 · scale + 1) · sign · value`` in super-blocks of 256 with a float16 ``d``, and 4-bit
scales of 16 or 32 weights. The types whose name ends in ``xxs`` or ``xs`` store seven of eight
signs: their product is positive, so where it is not, the weight that matters least takes the other
sign. Bytes equal those of llama.cpp (``quantize_row_iq2_xxs_impl`` and its kin), except where a
group of an ``iq3_s`` block is all zeros: llama.cpp writes those after it to the wrong place. ``Ŵ``
equals the ``gguf`` package's reading of them. `engine.quant.gguf_grid_kernels` does the same faster
on a processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from engine.quant.gguf_bytes import half_bytes, interleave, read_half, separate
from engine.quant.gguf_grids import Grid, grid
from engine.quant.gguf_search import candidates, fit_positive, quotient, root, total

SUPER_BLOCK = 256


@dataclass(frozen=True)
class Kind:
    """What tells one type from another."""

    group: int
    """Weights that share a scale."""
    parity: bool
    """Whether the eighth sign follows from seven."""
    spread: int
    """What the mean square of a super-block counts for beside each square."""
    tries: int
    """Candidates on either side of the first."""
    step: float
    smallest: float
    """A group whose magnitudes are all below it is all zeros."""
    again: Literal["all", "missed", "all if missed"]
    """Points that are looked for again with the scale that was found; ``missed`` are those that
    rounding did not hit."""
    factor: float
    """Of ``d``."""
    plain: Literal["even", "x²", "x² + σ²/4"] = "even"
    """What an error counts without an importance; ``even`` is what it counts with one of 1 for
    every input, since llama.cpp has no other for the type."""
    value: float = 0.125
    """What ``d`` times the values of the grid is to be multiplied by."""
    searched: bool = False
    """Whether candidates are relative to a scale that was searched for, not to the maximum."""


KINDS = {
    "iq3_s": Kind(32, False, 2, 9, 0.2, 1e-37, "all if missed", 1.033, "x²", 1.0),
    "iq3_xxs": Kind(32, True, 2, 15, 0.2, 1e-8, "missed", 1.0125, "x²", 0.25),
    "iq2_s": Kind(16, False, 2, 9, 0.1, 1e-8, "missed", 0.9875, "x² + σ²/4"),
    "iq2_xs": Kind(16, True, 1, 9, 0.1, 1e-15, "missed", 1.0),
    "iq2_xxs": Kind(32, True, 1, 6, 0.1, 1e-15, "all", 1.0, searched=True),
}


def tried(kind: Kind, levels: int) -> list[float]:
    """What is divided by the greatest magnitude of a group for an inverse scale."""
    return candidates(0, kind.step, 2 * levels - 1, range(-kind.tries, kind.tries + 1))


def encode(x: Tensor, importance: Tensor | None, name: str) -> Tensor:
    """Super-blocks of float32 ``[rows, in]`` as uint8 ``[rows · in / 256, bytes]``.

    Args:
        x: The weight.
        importance: Of each input, ``[in]``.
        name: A key of `KINDS`.
    """
    kind, points = KINDS[name], grid(name)
    blocks = x.reshape(-1, SUPER_BLOCK)
    given = None if importance is None else importance.expand_as(x).reshape(-1, SUPER_BLOCK)
    squares = total(blocks * blocks, dim=1)
    weights = _columns(_weights(blocks, squares, given, kind), kind.group)
    values, negative = _magnitudes(_columns(blocks, kind.group), weights, kind)
    scale, codes = _fit(values, weights, kind, _Search(name, points, x.device))
    negative ^= scale < 0
    empty = scale == 0
    scales = scale.abs().reshape(len(blocks), -1)
    d = scales.amax(1) / torch.tensor(31.0, device=x.device)
    d = d.masked_fill(~squares.isfinite(), torch.inf)
    steps = (0.5 * (quotient(1, d)[:, None] * scales - 1)).nan_to_num_(0).round_().clamp_(0, 15)
    numbers = _Search(name, points, x.device).point_of(codes.view(-1, points.width, len(empty)))
    numbers = numbers.masked_fill(empty, 0).T.reshape(len(blocks), -1)
    bits = negative & ~empty
    powers = 1 << torch.arange(8, device=x.device)[:, None]
    signs = (bits.view(-1, 8, len(empty)) * powers).sum(1).T.reshape(len(blocks), -1)
    stored = d if kind.factor == 1 else d * torch.tensor(kind.factor, device=x.device)
    return _packed(half_bytes(stored), numbers, signs, steps.to(torch.int64), name)


def decode(blocks: Tensor, name: str) -> Tensor:
    """float32 ``[blocks, 256]`` of super-blocks of bytes."""
    points, kind = grid(name), KINDS[name]
    numbers, signs, steps = _unpacked(blocks, name)
    d = read_half(blocks[:, :2])
    step = d * (1 + 2 * steps) if name == "iq3_s" else d * (0.5 + steps) * (2 * kind.value)
    table = torch.from_numpy(points.values).to(blocks.device)
    values = table.index_select(0, numbers.flatten().to(torch.int32)).view(len(blocks), -1, 8)
    bits = (signs[..., None] >> torch.arange(8, device=blocks.device)) & 1
    values = values * (1 - 2 * bits).to(torch.float32)
    groups = values.reshape(len(blocks), -1, kind.group)
    return (step[..., None] * groups).flatten(1)


# --- the search -----------------------------------------------------------------------------------


def _weights(blocks: Tensor, sums: Tensor, given: Tensor | None, kind: Kind) -> Tensor:
    """What the squared error of each weight counts, given the sums of squares of super-blocks."""
    squares = blocks * blocks
    spread = (kind.spread * sums / SUPER_BLOCK)[:, None]
    if given is not None or kind.plain == "even":
        both = root(spread + squares)
        return both if given is None else given * both
    return squares if kind.plain == "x²" else 0.25 * spread + squares


def _magnitudes(x: Tensor, weights: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Magnitudes ``[group, groups]``, one of them negative where signs do not fit; and signs."""
    negative = ~(x >= 0)
    values = torch.where(negative, -x, x)
    if kind.parity:
        eights = negative.view(-1, 8, x.shape[1])
        cost = (weights * x * x).view(eights.shape)
        least = torch.zeros_like(eights).scatter_(1, cost.argmin(1, keepdim=True), 1)
        flipped = (least & (eights.sum(1, keepdim=True) % 2 == 1)).view(x.shape)
        values = torch.where(flipped, -values, values)
        negative = negative ^ flipped
    return values, negative


def _fit(x: Tensor, weights: Tensor, kind: Kind, search: _Search) -> tuple[Tensor, Tensor]:
    """Scale of least weighted squared error of every group, and codes ``[group, groups]``."""
    levels, width = search.levels, search.width
    greatest = x.amax(0)
    empty = greatest < kind.smallest
    scale = greatest / torch.tensor(2.0 * levels - 1, device=x.device)
    if kind.searched:
        scale = fit_positive(x, weights, levels + 1).scale
        greatest = scale * levels
        empty |= ~(greatest > 0)
    near, weighted = root(weights), weights * x
    best = torch.zeros_like(scale)
    codes = torch.zeros_like(x)
    hit = torch.full((len(x) // width, x.shape[1]), kind.again == "missed", device=x.device)

    def sums(codes: Tensor) -> tuple[Tensor, Tensor]:
        values = 2 * codes + 1
        return total(weighted * values), total(weights * values * values)

    for candidate in tried(kind, levels):
        inverse = quotient(candidate, greatest)
        found, hits = search(x, near, inverse, quotient(1, inverse))
        sum_qx, sum_q2 = sums(found)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = torch.where(better, sum_qx / sum_q2, scale)
        best = torch.where(better, scale * sum_qx, best)
        codes, hit = torch.where(better, found, codes), torch.where(better, hits, hit)
    again = ~hit
    if kind.again != "missed":
        again = (again.any(0) | (kind.again == "all")).expand_as(again)
    again = again & (scale > 0)
    found, _ = search(x, near, quotient(1, scale), scale)
    codes = torch.where(again.repeat_interleave(width, 0), found, codes)
    sum_qx, sum_q2 = sums(codes)
    scale = torch.where(again.any(0) & (sum_q2 > 0), sum_qx / sum_q2, scale)
    return scale.masked_fill(empty, 0), codes.masked_fill(empty, 0)


class _Search:
    """Points nearest to scaled magnitudes, on one device."""

    def __init__(self, name: str, points: Grid, device: torch.device) -> None:
        self.levels, self.width, self._bits = points.levels, points.width, points.bits
        self._point, self._codes, self._rows, self._row = _tables(name, device)
        self._at_once = (1 << 24 if device.type == "cuda" else 1 << 20) // self._rows.shape[1]

    def point_of(self, codes: Tensor) -> Tensor:
        """Numbers of points ``[points, groups]`` of codes ``[points, n, groups]``."""
        return self._point[self._places(codes)].clamp_(min=0)

    def __call__(
        self, x: Tensor, near: Tensor, inverse: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Codes ``[group, groups]``, and where rounding hit a point, ``[points, groups]``."""
        rounded = (0.5 * (inverse * x - 1)).nan_to_num_(0).round_().clamp_(0, self.levels - 1)
        shape = (-1, self.width, x.shape[1])
        codes = rounded.view(shape)
        places = self._places(codes)
        hit = self._point[places] >= 0
        missed = (~hit).nonzero(as_tuple=True)
        columns, weighing = (each.view(shape).transpose(1, 2) for each in (x, near))
        by_point = codes.transpose(1, 2)
        for start in range(0, len(missed[0]), self._at_once):
            at = tuple(each[start : start + self._at_once] for each in missed)
            nearest = self._nearest(columns[at], weighing[at], scale[at[1]], places[at])
            by_point[at] = self._codes[nearest]
        return rounded, hit

    def _nearest(self, x: Tensor, near: Tensor, scale: Tensor, places: Tensor) -> Tensor:
        """The neighbour of least weighted error of ``[places, n]``, the first of several."""
        rows = self._rows[self._row[places]]
        distance = x.new_zeros(rows.shape)
        for i in range(self.width):
            value = 2 * self._codes[:, i][rows] + 1
            gap = scale[:, None] * value - x[:, i : i + 1]
            distance += near[:, i : i + 1] * gap * gap
        distance.masked_fill_(rows < 0, torch.inf)
        return rows.gather(1, distance.argmin(1, keepdim=True))[:, 0]

    def _places(self, codes: Tensor) -> Tensor:
        found = codes[:, 0].to(torch.int64)
        for i in range(1, self.width):
            found = found | codes[:, i].to(torch.int64) << (self._bits * i)
        return found


@cache
def _tables(name: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By place the point and the row of neighbours; the codes of points; the neighbours."""
    points = grid(name)
    rows, row = points.padded()
    return (
        torch.from_numpy(points.point).to(device, torch.int64),
        torch.from_numpy(points.codes).to(device, torch.float32),
        torch.from_numpy(rows).to(device, torch.int64),
        torch.from_numpy(row).to(device, torch.int64),
    )


def _columns(blocks: Tensor, group: int) -> Tensor:
    """``[blocks, 256]`` as ``[group, groups]``."""
    return blocks.reshape(-1, group).T.contiguous()


# --- layout ---------------------------------------------------------------------------------------


def _packed(d: Tensor, numbers: Tensor, signs: Tensor, steps: Tensor, name: str) -> Tensor:
    """Blocks of bytes.

    Args:
        d: ``[blocks, 2]`` bytes.
        numbers: of points, int64 ``[blocks, points]``.
        signs: of eight weights, a bit each, ``[blocks, 32]``.
        steps: scales of groups, ``[blocks, groups]``.
        name: the type.
    """
    low, high = numbers & 255, (numbers >> 8).to(torch.uint8)
    if KINDS[name].parity:
        seven = signs & 127
        if name == "iq2_xs":
            return _bytes(d, _little(numbers | seven << 9, 2), interleave(_uint8(steps), 1, 4))
        fours = seven.view(len(d), -1, 4) << (7 * torch.arange(4, device=d.device))
        words = _little(fours.sum(2) | steps << 28, 4)
        if name == "iq3_xxs":
            return _bytes(d, low, words)
        pairs = [low.view(len(d), 8, 4).to(torch.uint8), words.view(len(d), 8, 4)]
        return _bytes(d, torch.cat(pairs, 2).flatten(1))
    scales = interleave(_uint8(steps), 1, 4)
    if name == "iq2_s":
        return _bytes(d, low, signs, interleave(high, 1, 2), scales)
    return _bytes(d, low, interleave(high, 1, 1), signs, scales)


def _unpacked(blocks: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of points, signs of eight weights, and scales as float32; see `_packed`."""
    rest = blocks[:, 2:]
    if name in ("iq2_xxs", "iq3_xxs"):
        if name == "iq3_xxs":
            numbers, words = rest[:, :64].to(torch.int64), _big(rest[:, 64:], 4)
        else:
            both = rest.reshape(len(rest), 8, 8)
            numbers = both[:, :, :4].flatten(1).to(torch.int64)
            words = _big(both[:, :, 4:].flatten(1), 4)
        seven = (words[..., None] >> (7 * torch.arange(4, device=rest.device))) & 127
        return numbers, _eighth(seven.flatten(1)), (words >> 28).to(torch.float32)
    size = 8 if name.startswith("iq2") else 4
    steps = separate(rest[:, -size:], 1, 4).to(torch.float32)
    if name == "iq2_xs":
        words = _big(rest[:, :64], 2)
        return words & 511, _eighth(words >> 9), steps
    if name == "iq2_s":
        low, signs, high = rest[:, :32], rest[:, 32:64], separate(rest[:, 64:72], 1, 2)
    else:
        low, signs, high = rest[:, :64], rest[:, 72:104], separate(rest[:, 64:72], 1, 1)
    return low.to(torch.int64) | high.to(torch.int64) << 8, signs.to(torch.int64), steps


def _eighth(seven: Tensor) -> Tensor:
    """Seven signs and the one that makes their product positive."""
    parity = seven ^ seven >> 4
    parity = parity ^ parity >> 2
    return seven | ((parity ^ parity >> 1) & 1) << 7


def _uint8(numbers: Tensor) -> Tensor:
    return numbers.to(torch.uint8)


def _bytes(*parts: Tensor) -> Tensor:
    return torch.cat([part.to(torch.uint8) for part in parts], 1)


def _little(words: Tensor, size: int) -> Tensor:
    """Numbers ``[blocks, n]`` as bytes, the lowest first."""
    shifts = 8 * torch.arange(size, device=words.device)
    return ((words[..., None] >> shifts) & 255).flatten(1)


def _big(packed: Tensor, size: int) -> Tensor:
    """int64 numbers of bytes, the lowest first."""
    each = packed.to(torch.int64).view(len(packed), -1, size)
    return (each << (8 * torch.arange(size, device=packed.device))).sum(2)
