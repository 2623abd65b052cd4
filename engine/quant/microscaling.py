"""``mxfp4`` and ``mxfp8``: small floats with an exponent for every 32.

The mx formats follow the OCP Microscaling Formats specification v1.0: blocks of 32 share a power
of two, stored as an 8-bit exponent (E8M0). As compressed-tensors 0.17.1 chooses it (``MXFP4A16``,
``MXFP8A16``), the exponent is that of the greatest magnitude, raised by one from 1.75 times a power
of two on, less that of the element's greatest value (2 for E2M1, 8 for E4M3). Both equal
compressed-tensors bit for bit; where its scales reach infinity, from ``1.75 · 2^127`` on, a weight
is refused. With ``+clip`` a block may also have the next wider or narrower range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic, Levels
from engine.quant.columns import group_index
from engine.quant.data_free.clip import clips
from engine.quant.quantized import in_groups
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.small_floats import (
    E4M3,
    E4M3_MAX,
    EVEN_CODES,
    e2m1_values,
    lost,
    nearest_e2m1,
    packed,
    unpacked,
)
from engine.quant.stored import Encoded, joined, write_rows


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
        values = unpacked(self.codes) if self.codes.dtype == torch.uint8 else self.codes
        groups = in_groups(values.to(torch.float32), 32)
        return (groups * power_of_two(self.exponent).unsqueeze(-1)).flatten(-2).to(dtype)


def quantize_microscaled(weight: Tensor, fmt: Format, name: str = "weight") -> Microscaled:
    """Round ``[out, in]`` or ``[experts, out, in]`` to ``mxfp4`` or ``mxfp8``; 32 divides ``in``.

    Values that are not finite take no part in a range and get the code of 0.

    Raises:
        FormatError: A weight's magnitude is at or beyond ``1.75 · 2^127``.
    """
    return joined(lambda matrix: _encoded_mx(matrix, fmt, name), weight.detach())


def write_dequantized(weight: Tensor, fmt: Format, out: Tensor, name: str = "weight") -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; raises as `quantize_microscaled` does."""
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
                better = lost(tried, groups) < lost(encoded, groups)
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


def _biased_exponent(maxima: Tensor) -> Tensor:
    """The exponent field of float32 ``maxima``, one more from a mantissa of 1.75 on; int32."""
    return (maxima.view(torch.int32) + (1 << 21)) >> 23


def power_of_two(exponent: Tensor) -> Tensor:
    """``2^(exponent − 127)`` in float32, exact for 0 too, which is not a normal number."""
    bits = exponent.to(torch.int32) << 23
    return bits.masked_fill(exponent == 0, 1 << 22).view(torch.float32)


class MicroscaledColumns:
    """`engine.quant.columns.Columns` of an mx format."""

    at_once = 1

    def __init__(self, W: Tensor, fmt: Format, name: str) -> None:
        self.group = fmt.group_size
        self._fmt, self._name = fmt, name
        self._exponents: list[Tensor] = []
        self._scales: list[Tensor] = []
        dtype = torch.uint8 if fmt.bits == 4 else E4M3
        self._codes = torch.empty(W.shape, dtype=dtype, device=W.device)

    def fix(self, part: Tensor) -> None:
        exponent = quantize_microscaled(part.T, self._fmt, self._name).exponent
        self._exponents.append(exponent)
        self._scales.append(power_of_two(exponent).view(-1))

    def round(self, place: int, w: Tensor) -> Tensor:
        scale = self._scales[group_index(place, self.group)]
        scaled = w / scale
        if self._fmt.bits == 4:
            codes = nearest_e2m1(scaled)
            values = e2m1_values(codes)
        else:
            codes = scaled.clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)
            values = codes.to(torch.float32)
        self._codes[place] = codes[0]
        return values.mul_(scale)

    def stored(self) -> Microscaled:
        codes = self._codes.T.contiguous()
        exponent = torch.cat(self._exponents, 1)
        return Microscaled(packed(codes) if self._fmt.bits == 4 else codes, exponent)


ARITHMETIC = Arithmetic(
    quantize=lambda weight, fmt, _dtype, name: quantize_microscaled(weight, fmt, name),
    write=lambda weight, fmt, _dtype, out, name: write_dequantized(weight, fmt, out, name),
    columns=lambda W, fmt, _dtype, name: MicroscaledColumns(W, fmt, name),
    levels=lambda fmt: Levels(EVEN_CODES if fmt.bits == 4 else ()),
)
