"""``e8-2+hadamard``: 2 bits a weight, eight weights at a time from a ball of the E8 lattice.

The codebook is built as E8P of QuIP# (Tseng et al. 2024, arXiv 2402.04396, §4.2): 256 patterns of
magnitudes (all 227 of half-integers with an even sum and a squared norm up to 10, and 29 of norm
12, here the first in order, where QuIP# lists others), seven signs with the eighth from parity,
and a shift of ± 1/4: 16 bits. The weight is rotated first (`engine.quant.data_free.hadamard`), and
one float32 scale brings its root mean square to 1.03. Codes are the nearest of all codewords,
without the adaptive rounding that QuIP# adds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from engine.quant.arithmetic import Arithmetic
from engine.quant.data_free.hadamard import rotate_back, write_rotated, write_rotated_back
from engine.quant.rows import matrices, row_chunks

RMS = 1.03
"""Root mean square of a scaled weight: ``opt_scale`` of QuIP#'s codebook."""

_TILE = 4096
"""Vectors whose distances to all patterns are held at a time."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A weight ``[out, in]`` or ``[experts, out, in]`` as codewords of a lattice."""

    codes: Tensor
    """int16 ``[…, out, in / 8]``: a shift, seven signs and eight bits of pattern."""
    scale: Tensor
    """float32 ``[…, 1, 1]``."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``: codewords times the scale, rotated back in float32, cast last."""
        words = codebook().to(self.codes.device)[self.codes.to(torch.int64) & 0xFFFF]
        found = words.flatten(-2) * self.scale
        for matrix in matrices(found):
            rotate_back(matrix)
        return found.to(dtype)


@cache
def patterns() -> Tensor:
    """Magnitudes float32 ``[256, 8]``: norm up to 10 first, each part in ascending order."""
    halves = torch.tensor(list(itertools.product((0.5, 1.5, 2.5), repeat=8)))
    norms = halves.square().sum(1)
    plain = halves.amax(1) < 2
    return torch.cat([halves[norms <= 10], halves[(norms == 12) & plain]])[:256]


@cache
def codebook() -> Tensor:
    """All codewords, float32 ``[65536, 8]``, by their codes."""
    codes = torch.arange(1 << 16)
    magnitudes = patterns()[codes & 255]
    negative = codes[:, None] >> torch.arange(8, 15) & 1
    last = (negative.sum(1) + magnitudes.sum(1).to(torch.int64)) % 2  # which makes the sum even
    negative = torch.cat([negative, last[:, None]], dim=1)
    return magnitudes * (1 - 2 * negative) + torch.where(codes >= 1 << 15, -0.25, 0.25)[:, None]


def quantize_lattice(weight: Tensor) -> Lattice:
    """Round ``[out, in]`` or ``[experts, out, in]`` to the lattice; 8 divides ``in``.

    Values that are not finite count as 0. Takes a float32 copy of one matrix.
    """
    weight = weight.detach()
    found = []
    for matrix in matrices(weight):
        work = torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
        scale = _rotated(matrix, work)
        codes = torch.cat([nearest_codewords(work[rows], scale) for rows in row_chunks(work)])
        found.append(Lattice(codes, scale))
    if weight.dim() == 2:
        return found[0]
    return Lattice(torch.stack([f.codes for f in found]), torch.stack([f.scale for f in found]))


def write_dequantized(weight: Tensor, out: Tensor) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``, which is also where the rotation is done."""
    scale = _rotated(weight, out)
    for rows in row_chunks(out):
        codes = nearest_codewords(out[rows], scale).to(torch.int64) & 0xFFFF
        out[rows] = codebook().to(out.device)[codes].flatten(-2) * scale
    write_rotated_back(weight, out)


def _rotated(weight: Tensor, out: Tensor) -> Tensor:
    """Rotate a weight into ``out``; its scale ``[1, 1]``."""
    write_rotated(weight, out)
    return lattice_scale(out)


def lattice_scale(rotated: Tensor) -> Tensor:
    """The scale ``[1, 1]`` of a rotated weight ``[out, in]``."""
    squares = [rotated[rows].to(torch.float64).square().sum(1) for rows in row_chunks(rotated)]
    mean = torch.cat(squares).sum() / rotated.numel()
    return (mean.sqrt() / RMS).to(torch.float32).reshape(1, 1)


def nearest_codewords(rotated: Tensor, scale: Tensor) -> Tensor:
    """int16 codes ``[rows, in / 8]`` of the nearest codewords to ``[rows, in]``."""
    vectors = (rotated / scale.masked_fill(scale == 0, 1)).reshape(-1, 8)
    tiles = range(0, len(vectors), _TILE)
    codes = torch.cat([_nearest_words(vectors[start : start + _TILE]) for start in tiles])
    return codes.view(len(rotated), -1).to(torch.int16)


def _nearest_words(vectors: Tensor) -> Tensor:
    """Codes of the nearest codewords.

    For each shift and pattern the best signs are those of the vector; where their parity is wrong,
    that sign turns which costs least.
    """
    magnitudes = patterns().to(vectors.device)
    odd = magnitudes.sum(1).to(torch.int64) % 2
    norms = magnitudes.square().sum(1)
    found, least = None, None
    for bit, shift in ((0, 0.25), (1, -0.25)):
        rest = vectors - shift
        negative = (rest < 0).to(torch.int64)
        products = (rest[:, i : i + 1].abs() * magnitudes[:, i] for i in range(8))
        gain = next(products)
        cheapest = gain.clone()
        for product in products:
            gain += product
            torch.minimum(cheapest, product, out=cheapest)
        wrong = (negative.sum(1, keepdim=True) + odd) % 2 == 1
        distance = norms - 2 * gain + torch.where(wrong, 4 * cheapest, 0)
        error, pattern = distance.min(1)
        error = error + rest.square().sum(1)
        chosen = magnitudes[pattern]
        turn = (rest.abs() * chosen).argmin(1, keepdim=True)
        flip = wrong.gather(1, pattern[:, None]).to(torch.int64)
        negative.scatter_add_(1, turn, flip)
        bits = negative[:, :7] % 2 << torch.arange(8, 15, device=vectors.device)
        codes = pattern | bits.sum(1) | bit << 15
        if found is None or least is None:
            found, least = codes, error
        else:
            found = torch.where(error < least, codes, found)
    assert found is not None
    return found


class LatticeColumns:
    """`engine.quant.columns.Columns` of ``e8-2``.

    Eight columns of a rotated weight at once, with one scale.
    """

    at_once = 8

    def __init__(self, W: Tensor) -> None:
        self.group: int | None = None
        self._scale = lattice_scale(W.T)
        self._words = codebook().to(W.device)
        shape = (W.shape[0] // self.at_once, W.shape[1])
        self._codes = torch.empty(shape, dtype=torch.int16, device=W.device)

    def fix(self, part: Tensor) -> None:
        raise NotImplementedError("the one scale is found when this is made")

    def round(self, place: int, w: Tensor) -> Tensor:
        codes = nearest_codewords(w.T, self._scale)[:, 0]
        self._codes[place // self.at_once] = codes
        return (self._words[codes.to(torch.int64) & 0xFFFF] * self._scale).T.contiguous()

    def stored(self) -> Lattice:
        return Lattice(self._codes.T.contiguous(), self._scale)


ARITHMETIC = Arithmetic(
    quantize=lambda weight, _fmt, _dtype, _name: quantize_lattice(weight),
    write=lambda weight, _fmt, _dtype, out, _name: write_dequantized(weight, out),
    columns=lambda W, _fmt, _dtype, _name: LatticeColumns(W),
)
