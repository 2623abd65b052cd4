"""A weight rounded one column after the other, as `engine.quant.methods.gptq` asks for it.

A family says how many columns are rounded at once, how many share parameters, what the parameters
of a group are, and what a column is rounded to; it gathers the codes in the form it stores. Weights
are transposed here, ``[in, out]``, so that a column is contiguous. Parameters and codes are those
of rounding to nearest, found by the same functions.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.formats.grammar import Format
from engine.quant.float8 import FLOAT8, Float8, float8_codes, float8_scales
from engine.quant.integer import (
    Parameters,
    code_range,
    group_parameters,
    stored_zero_points,
)
from engine.quant.lattice import Lattice, codebook, lattice_scale, nearest_codewords
from engine.quant.microscaling import (
    E4M3,
    E4M3_MAX,
    Microscaled,
    NvFloat4,
    e2m1_values,
    encoded_nv,
    nearest_e2m1,
    nv_global_scale,
    packed,
    power_of_two,
    quantize_microscaled,
)
from engine.quant.normal_float import (
    LEAST,
    NormalFloat,
    block_maxima,
    maxima_of,
    nearest_codes,
    pack,
    stored_maxima,
    table,
    weight_maxima,
)
from engine.quant.quantized import Quantized
from engine.quant.rows import looked_up
from engine.quant.stored import Stored


class Columns(Protocol):
    """The columns of one weight, and what has been found of them so far."""

    group: int | None
    """Columns that share parameters; None where those were found when this was made."""
    at_once: int
    """Columns that are rounded together."""

    def fix(self, part: Tensor) -> None:
        """Find the parameters of the next group, ``[columns, out]``."""
        ...

    def round(self, place: int, w: Tensor) -> Tensor:
        """The values ``[at_once, out]`` that ``w`` is rounded to; codes are stored at ``place``.

        The group that the place lies in must have been fixed.
        """
        ...

    def stored(self) -> Stored:
        """All codes and parameters."""
        ...


def columns_of(W: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> Columns:
    """The columns of a weight as it is before anything is rounded, ``[in, out]``.

    Args:
        W: float32, finite; only looked at.
        fmt: The format; its ``+clip`` and ``+hqq`` are followed.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for messages.

    Raises:
        FormatError: A scale is too large for its dtype; `Columns.fix` raises the same.
    """
    if fmt.family == "integer":
        return _Integer(W, fmt, scale_dtype, name)
    if fmt.name in FLOAT8:
        return _Float8(W, fmt, scale_dtype, name)
    if fmt.name == "nvfp4":
        return _NvFloat4(W, fmt)
    if fmt.family == "float":
        return _Microscaled(W, fmt, name)
    if fmt.name == "e8-2":
        return _Lattice(W)
    return _NormalFloat(W, fmt)


class _IntegerGroup(NamedTuple):
    found: Parameters
    divisor: Tensor
    """``[out]`` or ``[1]``, as the two below."""
    zero: Tensor | None
    scale: Tensor


class _Integer:
    at_once = 1

    def __init__(self, W: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> None:
        self.group = fmt.group_size
        self._fmt, self._scale_dtype, self._name = fmt, scale_dtype, name
        self._ends = code_range(fmt.bits)
        self._groups: list[_IntegerGroup] = []
        self._codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
        if self.group is None:
            self.fix(W)

    def fix(self, part: Tensor) -> None:
        weights = part.T.unsqueeze(1).contiguous()
        found = group_parameters(weights, len(part), self._fmt, self._scale_dtype, self._name)
        zero = None if found.zero_point is None else found.zero_point.view(-1)
        scale = found.scale.to(torch.float32).view(-1)
        self._groups.append(_IntegerGroup(found, found.divisor.view(-1), zero, scale))

    def round(self, place: int, w: Tensor) -> Tensor:
        group = self._groups[_index(place, self.group)]
        q = w / group.divisor
        if group.zero is not None:
            q.add_(group.zero)
        q.clamp_(*self._ends).round_()
        self._codes[place] = q[0]
        if group.zero is not None:
            q.sub_(group.zero)
        return q.mul_(group.scale)

    def stored(self) -> Quantized:
        found = [group.found for group in self._groups]
        points = [each.zero_point for each in found if each.zero_point is not None]
        point = None
        if points:
            point = stored_zero_points(torch.cat(points, 1), self._fmt, self._scale_dtype)
        scale = torch.cat([each.scale for each in found], 1)
        return Quantized(self._codes.T.contiguous(), scale, point, self.group)


class _Float8:
    at_once = 1

    def __init__(self, W: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> None:
        self.group = fmt.group_size if fmt.strategy == "block" else None
        self._fmt, self._scale_dtype, self._name = fmt, scale_dtype, name
        self._scales: list[Tensor] = []
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._codes = torch.empty(W.shape, dtype=FLOAT8[fmt.name], device=W.device)
        if self.group is None:
            self.fix(W)

    def fix(self, part: Tensor) -> None:
        weights = part.T.contiguous()
        scale, divisor = float8_scales(weights, self._fmt, self._scale_dtype, self._name)
        self._scales.append(scale)
        factors = (divisor.view(-1), scale.to(torch.float32).view(-1))
        if self.group is not None:  # one for as many rows as columns
            out = part.shape[1]
            one, other = (each.repeat_interleave(self.group)[:out] for each in factors)
            factors = (one, other)
        self._factors.append(factors)

    def round(self, place: int, w: Tensor) -> Tensor:
        divisor, scale = self._factors[_index(place, self.group)]
        codes = float8_codes(w, divisor, self._fmt)
        self._codes[place] = codes[0]
        return codes.to(torch.float32).mul_(scale)

    def stored(self) -> Float8:
        return Float8(self._codes.T.contiguous(), torch.cat(self._scales, 1), self.group)


class _Microscaled:
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
        scale = self._scales[_index(place, self.group)]
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


class _NvFloat4:
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
        scale = self._factors[_index(place, self.group)]
        codes = nearest_e2m1(w / scale)
        self._codes[place] = codes[0]
        return e2m1_values(codes).mul_(scale)

    def stored(self) -> NvFloat4:
        scale = torch.cat(self._scales, 1)
        return NvFloat4(packed(self._codes.T.contiguous()), scale, self._global_scale)


class _NormalFloat:
    """Blocks run over the flattened weight: over columns of a row where they divide it.

    Otherwise, and where maxima are quantised together, they are found beforehand.
    """

    at_once = 1

    def __init__(self, W: Tensor, fmt: Format) -> None:
        self._fmt, self._size = fmt, fmt.group_size or 1
        self._table = table(fmt.name)
        self._shape = (W.shape[1], W.shape[0])
        self._codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
        self._nested: Tensor | None = None
        self._offset: Tensor | None = None
        self._found: list[Tensor] = []
        """Maxima of the groups, ``[out]`` each."""
        whole = len(W) % self._size == 0
        self.group = self._size if whole and not fmt.options else None
        if self.group is None:
            self._absmax = weight_maxima(W.T, fmt)
            self._stored, self._nested, self._offset = stored_maxima(self._absmax, fmt)
            self._maxima = maxima_of(self._stored, self._nested, self._offset)
            self._starts = torch.arange(self._shape[0], device=W.device) * self._shape[1]

    def fix(self, part: Tensor) -> None:
        self._found.append(block_maxima(part.T.flatten(), self._fmt))

    def round(self, place: int, w: Tensor) -> Tensor:
        if self.group is None:
            blocks = (self._starts + place) // self._size
            absmax, maxima = self._absmax[blocks], self._maxima[blocks]
        else:
            absmax = maxima = self._found[place // self.group]
        scaled = w * absmax.clamp(min=LEAST).reciprocal()
        codes = nearest_codes(scaled.clamp_(-1, 1), self._fmt.name)
        self._codes[place] = codes[0]
        return looked_up(self._table, codes).mul_(maxima)

    def stored(self) -> NormalFloat:
        absmax = torch.stack(self._found, 1).flatten() if self.group else self._stored
        codes = pack(self._codes.T.flatten(), self._fmt)
        name, shape = self._fmt.name, self._shape
        return NormalFloat(codes, absmax, self._nested, self._offset, name, self._size, shape)


class _Lattice:
    """Eight columns of a rotated weight at once, with one scale."""

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


def _index(place: int, group: int | None) -> int:
    return 0 if group is None else place // group
