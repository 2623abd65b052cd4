"""``nvfp4``: 4-bit floats with an 8-bit float scale for 16 weights, and one float32 for all.

As compressed-tensors has it (``NVFP4A16``), which it equals bit for bit: an E4M3 scale for 16
weights and one float32 for the tensor, ``448 · 6 / max|w|``, that brings those scales into the
range of E4M3. With ``+clip`` a block may also have a wider range than its own: values of E2M1 are
so far apart that a greatest weight at 4 or 3 of 6 can lose less ("four over six", Cook et al. 2025,
arXiv 2512.02010).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic, Levels
from engine.quant.columns import group_index
from engine.quant.data_free.clip import best_factors, clips
from engine.quant.quantized import in_groups
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.small_floats import (
    E2M1,
    E4M3,
    E4M3_MAX,
    EVEN_CODES,
    e2m1_values,
    lost,
    nearest_e2m1,
    packed,
    unpacked,
)
from engine.quant.stored import FOR_THE_WHOLE, Encoded, joined, write_rows

_EMPTY_SCALE = 0.125
"""Stored for a block of zeros, as compressed-tensors does."""


@dataclass(frozen=True, eq=False)
class NvFloat4:
    """A weight ``[out, in]`` or ``[experts, out, in]`` in ``nvfp4``."""

    codes: Tensor
    """uint8 ``[…, in / 2]``: two E2M1 codes a byte, the first in the low bits."""
    scale: Tensor
    """float8 E4M3 ``[…, in / 16]``."""
    global_scale: Tensor = field(metadata=FOR_THE_WHOLE)
    """float32 ``[1]``, or ``[experts, 1]``: scales are divided by it."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ = element · (scale / global_scale)``, worked out in float32 and cast last."""
        scale = self.scale.to(torch.float32) / self.global_scale.unsqueeze(-1)
        groups = in_groups(unpacked(self.codes), 16)
        return (groups * scale.unsqueeze(-1)).flatten(-2).to(dtype)


def quantize_nvfp4(weight: Tensor, fmt: Format) -> NvFloat4:
    """Round ``[out, in]`` or ``[experts, out, in]`` to ``nvfp4``; 16 divides ``in``.

    Values that are not finite take no part in a range and get the code of 0.
    """
    return joined(lambda matrix: _encoded_nv(matrix, fmt), weight.detach())


def write_dequantized(weight: Tensor, fmt: Format, out: Tensor) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; values that are not finite are copied."""
    write_rows(weight, _encoded_nv(weight, fmt), out)


def nv_global_scale(weight: Tensor) -> Tensor:
    """``448 · 6 / max|w|`` of ``[out, in]``, float32 ``[1]``."""
    found = [finite_and_broken(weight[rows])[0].abs().amax() for rows in row_chunks(weight)]
    greatest = torch.stack(found).amax().clamp(min=torch.finfo(torch.float32).tiny)
    # A product with the reciprocal, as PyTorch divides a number by a tensor: that is the reference.
    scale = greatest.reciprocal() * (E4M3_MAX * E2M1[-1])
    return scale.nan_to_num(posinf=1.0).reshape(1)


def encoded_nv(groups: Tensor, global_scale: Tensor, fmt: Format) -> NvFloat4:
    """Weights in groups, finite float32 ``[rows, groups, 16]``, in ``nvfp4``."""
    # A tensor on the device: CUDA turns division by a Python number into a product, which differs.
    e2m1 = torch.tensor(E2M1[-1], device=groups.device)

    def encode(most: Tensor) -> NvFloat4:
        scale = (global_scale * (most / e2m1)).clamp_(max=E4M3_MAX)
        scale = scale.to(E4M3).to(torch.float32)
        scale = scale.masked_fill(scale == 0, _EMPTY_SCALE)
        codes = nearest_e2m1((groups / (scale / global_scale).unsqueeze(-1)).flatten(-2))
        return NvFloat4(packed(codes), scale.to(E4M3), global_scale)

    maxima = groups.abs().amax(-1)
    if clips(fmt):
        maxima = maxima * best_factors(
            lambda factors: lost(encode(maxima * factors), groups), maxima, wider=(1.5, 2.0)
        )
    return encode(maxima)


def _encoded_nv(weight: Tensor, fmt: Format) -> Encoded[NvFloat4]:
    global_scale = nv_global_scale(weight)
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        yield rows, broken, encoded_nv(in_groups(finite, 16), global_scale, fmt)


class NvFloat4Columns:
    """`engine.quant.columns.Columns` of ``nvfp4``."""

    at_once = 1

    def __init__(self, W: Tensor, fmt: Format) -> None:
        self.group = fmt.group_size
        self._fmt = fmt
        self._global_scale = nv_global_scale(W)
        self._scales: list[Tensor] = []
        self._factors: list[Tensor] = []
        self._codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)

    def fix(self, part: Tensor) -> None:
        scale = encoded_nv(part.T.unsqueeze(1), self._global_scale, self._fmt).scale
        self._scales.append(scale)
        self._factors.append((scale.to(torch.float32) / self._global_scale).view(-1))

    def round(self, place: int, w: Tensor) -> Tensor:
        scale = self._factors[group_index(place, self.group)]
        codes = nearest_e2m1(w / scale)
        self._codes[place] = codes[0]
        return e2m1_values(codes).mul_(scale)

    def stored(self) -> NvFloat4:
        scale = torch.cat(self._scales, 1)
        return NvFloat4(packed(self._codes.T.contiguous()), scale, self._global_scale)


ARITHMETIC = Arithmetic(
    quantize=lambda weight, fmt, _dtype, _name: quantize_nvfp4(weight, fmt),
    write=lambda weight, fmt, _dtype, out, _name: write_dequantized(weight, fmt, out),
    columns=lambda W, fmt, _dtype, _name: NvFloat4Columns(W, fmt),
    levels=lambda _: Levels(EVEN_CODES, beside_greatest=True),
)
