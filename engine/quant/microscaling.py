"""``mxfp4``, ``mxfp8`` and ``nvfp4``: small floats with a scale for every few weights.

The mx formats follow the OCP Microscaling Formats specification v1.0: blocks of 32 share a power
of two, stored as an 8-bit exponent (E8M0). As compressed-tensors 0.17.1 chooses it (``MXFP4A16``,
``MXFP8A16``), the exponent is that of the greatest magnitude, raised by one from 1.75 times a power
of two on, less that of the element's greatest value (2 for E2M1, 8 for E4M3). ``nvfp4``
(``NVFP4A16``) has an E4M3 scale for 16 weights and one float32 for the tensor,
``448 · 6 / max|w|``, that brings those scales into the range of E4M3. All three equal
compressed-tensors bit for bit; where its mx scales reach infinity, from ``1.75 · 2^127`` on, a
weight is refused. With ``+clip`` a block may also have a wider range than its own: values of E2M1
are so far apart that a greatest weight at 4 or 3 of 6 can lose less ("four over six", Cook et al.
2025, arXiv 2512.02010).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.methods.clip import best_factors, clips
from engine.quant.quantized import in_groups
from engine.quant.rows import finite_and_broken, looked_up, row_chunks
from engine.quant.stored import FOR_THE_WHOLE, Encoded, joined, write_rows

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of a 4-bit float; the fourth bit of a code is the sign."""

_EMPTY_NV_SCALE = 0.125
"""Stored for a block of zeros, as compressed-tensors does."""


@dataclass(frozen=True, eq=False)
class Microscaled:
    """A weight ``[out, in]`` or ``[experts, out, in]`` in an mx format."""

    codes: Tensor
    """``mxfp8``: float8 E4M3 in the shape of the weight. ``mxfp4``: uint8 ``[…, in / 2]``, two E2M1
    codes a byte, the first in the low bits."""
    exponent: Tensor
    """uint8 ``[…, in / 32]``: the scale is ``2^(exponent − 127)``."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ = element · 2^(exponent − 127)``, worked out in float32 and cast last."""
        values = _unpacked(self.codes) if self.codes.dtype == torch.uint8 else self.codes
        groups = in_groups(values.to(torch.float32), 32)
        return (groups * power_of_two(self.exponent).unsqueeze(-1)).flatten(-2).to(dtype)


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
        groups = in_groups(_unpacked(self.codes), 16)
        return (groups * scale.unsqueeze(-1)).flatten(-2).to(dtype)


def quantize_microscaled(weight: Tensor, fmt: Format, name: str = "weight") -> Microscaled:
    """Round ``[out, in]`` or ``[experts, out, in]`` to ``mxfp4`` or ``mxfp8``; 32 divides ``in``.

    Values that are not finite take no part in a range and get the code of 0.

    Raises:
        FormatError: A weight's magnitude is at or beyond ``1.75 · 2^127``.
    """
    return joined(lambda matrix: _encoded_mx(matrix, fmt, name), weight.detach())


def quantize_nvfp4(weight: Tensor, fmt: Format) -> NvFloat4:
    """Round ``[out, in]`` or ``[experts, out, in]`` to ``nvfp4``; 16 divides ``in``.

    Values that are not finite take no part in a range and get the code of 0.
    """
    return joined(lambda matrix: _encoded_nv(matrix, fmt), weight.detach())


def write_dequantized(weight: Tensor, fmt: Format, out: Tensor, name: str = "weight") -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; raises as `quantize_microscaled` does."""
    if fmt.name == "nvfp4":
        write_rows(weight, _encoded_nv(weight, fmt), out)
    else:
        write_rows(weight, _encoded_mx(weight, fmt, name), out)


def _encoded_mx(weight: Tensor, fmt: Format, name: str) -> Encoded[Microscaled]:
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        groups = in_groups(finite, 32)
        maxima = groups.abs().amax(-1)
        exponent = _biased_exponent(maxima)
        if (exponent == 255).any():
            raise FormatError(
                f"{name}: {fmt} ends below 1.75·2^127, and a weight has the magnitude "
                f"{float(maxima.max()):.3g}: keep this layer"
            )
        encoded = _with_exponent(groups, exponent, fmt)
        if clips(fmt):
            # Scales are powers of two: no other ranges than these come out differently.
            for step in (-1, 1):
                tried = _with_exponent(groups, (exponent + step).clamp(max=254), fmt)
                better = _lost(tried, groups) < _lost(encoded, groups)
                chosen = torch.where(better, tried.exponent, encoded.exponent).to(torch.int32)
                encoded = _with_exponent(groups, chosen + (2 if fmt.bits == 4 else 8), fmt)
        yield rows, broken, encoded


def _with_exponent(groups: Tensor, exponent: Tensor, fmt: Format) -> Microscaled:
    """Codes of ``[rows, groups, 32]`` where ``exponent`` is that of the greatest magnitudes."""
    exponent = exponent - (2 if fmt.bits == 4 else 8)
    exponent = exponent.clamp(min=0).to(torch.uint8)
    scaled = (groups / power_of_two(exponent).unsqueeze(-1)).flatten(-2)
    if fmt.bits == 4:
        return Microscaled(packed(nearest_e2m1(scaled)), exponent)
    return Microscaled(scaled.clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3), exponent)


def _lost(encoded: Microscaled | NvFloat4, groups: Tensor) -> Tensor:
    """The squared error of every group, float64 ``[rows, groups]``."""
    found = encoded.approx().view_as(groups) - groups
    return found.square_().sum(-1, dtype=torch.float64)


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
        scale = scale.masked_fill(scale == 0, _EMPTY_NV_SCALE)
        codes = nearest_e2m1((groups / (scale / global_scale).unsqueeze(-1)).flatten(-2))
        return NvFloat4(packed(codes), scale.to(E4M3), global_scale)

    maxima = groups.abs().amax(-1)
    if clips(fmt):
        maxima = maxima * best_factors(
            lambda factors: _lost(encode(maxima * factors), groups), maxima, wider=(1.5, 2.0)
        )
    return encode(maxima)


def _encoded_nv(weight: Tensor, fmt: Format) -> Encoded[NvFloat4]:
    global_scale = nv_global_scale(weight)
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        yield rows, broken, encoded_nv(in_groups(finite, 16), global_scale, fmt)


def _biased_exponent(maxima: Tensor) -> Tensor:
    """The exponent field of float32 ``maxima``, one more from a mantissa of 1.75 on; int32."""
    return (maxima.view(torch.int32) + (1 << 21)) >> 23


def power_of_two(exponent: Tensor) -> Tensor:
    """``2^(exponent − 127)`` in float32, exact for 0 too, which is not a normal number."""
    bits = exponent.to(torch.int32) << 23
    return bits.masked_fill(exponent == 0, 1 << 22).view(torch.float32)


def nearest_e2m1(scaled: Tensor) -> Tensor:
    """uint8 codes of the nearest 4-bit floats, ties to even.

    Magnitudes are steps of a half up to 2, of 1 up to 4, and of 2 from there on.
    """
    size = scaled.abs()
    above = torch.where(size < 4, size.round() + 2, (size / 2).round_() + 4)
    codes = torch.where(size < 2, (size * 2).round_(), above).clamp_(max=7).to(torch.uint8)
    return codes | (scaled < 0).to(torch.uint8) << 3


def e2m1_values(codes: Tensor) -> Tensor:
    """The 4-bit floats that uint8 codes stand for, float32."""
    return looked_up(torch.tensor([*E2M1, *(-value for value in E2M1)]), codes)


def packed(codes: Tensor) -> Tensor:
    """4-bit codes ``[…, in]``, two a byte ``[…, in / 2]``."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _unpacked(codes: Tensor) -> Tensor:
    """float32 ``[…, in]`` of bytes ``[…, in / 2]``."""
    return e2m1_values(torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2))
