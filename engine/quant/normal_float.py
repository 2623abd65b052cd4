"""``nf4`` and ``fp4``: 4-bit codes into a table, times the greatest magnitude of a block.

NF4 is the quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, §3 and
appendix E), FP4 a 4-bit float. Blocks run over the flattened weight, the last one perhaps shorter.
With ``:dq``, double quantisation, the block maxima less their mean are stored in 8 bits of the
dynamic type (Dettmers et al. 2021, arXiv 2110.02861) with a float32 maximum for 256 of them. Codes,
maxima and ``Ŵ`` equal bitsandbytes on a CPU bit for bit (``quantize_4bit``, ``dequantize_4bit``);
it works in float32 whatever the dtype, and casts last. The mean of the maxima is PyTorch's, here as
there: of very many its last bit may hang on the number of threads. ``+clip`` takes less than the
maxima where that loses less; with ``:dq``, which moves the maxima afterwards, for the whole weight
or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic, Levels
from engine.quant.data_free.clip import best_factors, clips
from engine.quant.rows import finite_and_broken, flat_chunks, matrices, restored, table_lookup

# fmt: off
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)
FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Twelfths; codes from 8 on are the same, negative."""
# fmt: on

NESTED_BLOCK = 256
"""Block maxima that share a maximum of their own."""

LEAST = 1e-38
"""Stands in for a maximum of 0 where something is divided by it."""


@dataclass(frozen=True, eq=False)
class NormalFloat:
    """A weight ``[out, in]`` or ``[experts, out, in]`` as 4-bit codes in blocks."""

    codes: Tensor
    """uint8 ``[…, ⌈out · in / 2⌉]``: two codes a byte, the first in the high bits."""
    absmax: Tensor
    """``[…, blocks]``: float32 maxima, or uint8 codes of them."""
    nested_absmax: Tensor | None
    """float32 ``[…, ⌈blocks / 256⌉]``, if maxima are quantised."""
    offset: Tensor | None
    """float32 ``[…, 1]``, the mean of the maxima, if they are quantised."""
    table: str
    """``nf4`` or ``fp4``."""
    block_size: int
    shape: tuple[int, ...]

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ = table[code] · absmax``, worked out in float32 and cast last."""
        values = table_lookup(table(self.table), _unpack(self.codes))
        count = math.prod(self.shape[-2:])
        maxima = self.maxima().repeat_interleave(self.block_size, -1)[..., :count]
        return (values[..., :count] * maxima).reshape(self.shape).to(dtype)

    def maxima(self) -> Tensor:
        """The block maxima that codes are multiplied by, float32 ``[…, blocks]``."""
        return maxima_of(self.absmax, self.nested_absmax, self.offset)


@cache
def table(name: str) -> Tensor:
    """The 16 values of ``nf4`` or ``fp4``, float32."""
    if name == "nf4":
        return torch.tensor(NF4)
    return torch.tensor([*FP4, *(-value for value in FP4)]) / 12


@cache
def dynamic_table() -> Tensor:
    """The 256 values of the signed dynamic type, ascending: ``create_dynamic_map``.

    Seven decades, each with twice as many values as the one below, then 0 and 1.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10 ** (decade - 6) * ((bounds[:-1] + bounds[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


def quantize_normal_float(weight: Tensor, fmt: Format) -> NormalFloat:
    """Round ``[out, in]`` or ``[experts, out, in]`` to ``nf4`` or ``fp4``.

    Values that are not finite count as 0.
    """
    weight = weight.detach()
    codes, maxima = [], []
    for matrix in matrices(weight):
        absmax = weight_maxima(matrix, fmt)
        maxima.append(stored_maxima(absmax, fmt))
        parts = _encoded(matrix, fmt, absmax)
        codes.append(torch.cat([pack(part, fmt) for _, _, part, _ in parts]))
    stored, nested, offset = zip(*maxima, strict=True)
    return NormalFloat(
        _together(codes, weight),
        _together(stored, weight),
        _together(nested, weight) if nested[0] is not None else None,
        _together(offset, weight) if offset[0] is not None else None,
        fmt.name,
        fmt.group_size or 1,
        tuple(weight.shape),
    )


def write_dequantized(weight: Tensor, fmt: Format, out: Tensor) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; values that are not finite are copied."""
    flat = out.view(-1)
    for part, broken, approx in _approx(weight, fmt, weight_maxima(weight, fmt)):
        flat[part] = approx if broken is None else restored(approx, broken[0], broken[1])


def _approx(
    weight: Tensor, fmt: Format, absmax: Tensor
) -> Iterator[tuple[slice, tuple[Tensor, Tensor] | None, Tensor]]:
    """Yield slices of the flattened weight, what is not finite in them, and their ``Ŵ``."""
    size = fmt.group_size or 1
    values = table(fmt.name)
    maxima = maxima_of(*stored_maxima(absmax, fmt))
    for part, broken, codes, _ in _encoded(weight, fmt, absmax):
        used = maxima[part.start // size : -(-part.stop // size)]
        yield part, broken, table_lookup(values, codes) * used.repeat_interleave(size)[: len(codes)]


def _encoded(
    weight: Tensor, fmt: Format, absmax: Tensor
) -> Iterator[tuple[slice, tuple[Tensor, Tensor] | None, Tensor, Tensor]]:
    """Yield slices of the flattened weight, what is not finite in them, codes, and the weights."""
    size = fmt.group_size or 1
    for part, given in flat_chunks(weight, size):
        finite, places = finite_and_broken(given)
        used = absmax[part.start // size : -(-part.stop // size)]
        codes = _nearest(finite, used, fmt)
        yield part, None if places is None else (places, given), codes, finite


def _nearest(finite: Tensor, absmax: Tensor, fmt: Format) -> Tensor:
    """Codes of flat weights that begin with a block, given the maxima of their blocks."""
    size = fmt.group_size or 1
    divisor = absmax.clamp(min=LEAST)
    whole = len(finite) // size * size
    blocks = finite[:whole].view(-1, size) * divisor[: whole // size].reciprocal()[:, None]
    # bitsandbytes divides in the last block where it is shorter, and multiplies elsewhere.
    scaled = torch.cat([blocks.view(-1), finite[whole:] / divisor[-1]]).clamp_(-1, 1)
    return nearest_codes(scaled, fmt.name)


def maxima_of(absmax: Tensor, nested: Tensor | None, offset: Tensor | None) -> Tensor:
    """What codes are multiplied by, float32 ``[…, blocks]``, of maxima as they are stored."""
    if nested is None or offset is None:
        return absmax
    spread = nested.repeat_interleave(NESTED_BLOCK, -1)
    values = table_lookup(dynamic_table(), absmax)
    return values * spread[..., : values.shape[-1]] + offset


def nearest_codes(scaled: Tensor, name: str) -> Tensor:
    """uint8 codes of the nearest values of a table, for numbers from −1 to 1."""
    order, bounds = _bounds(name)
    places = torch.bucketize(scaled, bounds.to(scaled.device), out_int32=True)
    return table_lookup(order, places)


@cache
def _bounds(name: str) -> tuple[Tensor, Tensor]:
    """The codes of a table by their values, and where one ends and the next begins."""
    order = torch.argsort(table(name))
    values = table(name)[order]
    return order.to(torch.uint8), (values[:-1] + values[1:]) / 2


def block_maxima(finite: Tensor, fmt: Format) -> Tensor:
    """What stands for the magnitudes of blocks that are flat, float32 ``[blocks]``."""
    whole = _block_maxima(finite, fmt.group_size or 1)
    return _clipped(finite, whole, fmt) if clips(fmt) else whole


def weight_maxima(weight: Tensor, fmt: Format) -> Tensor:
    """What stands for the magnitudes of every block of ``[out, in]``, float32 ``[blocks]``."""
    size = fmt.group_size or 1
    whole, clipped = [], []
    for _, given in flat_chunks(weight, size):
        finite, _ = finite_and_broken(given)
        whole.append(_block_maxima(finite, size))
        if clips(fmt):
            clipped.append(_clipped(finite, whole[-1], fmt))
    absmax = torch.cat(whole)
    if not clips(fmt):
        return absmax
    found = torch.cat(clipped)
    if ("dq", True) in fmt.options and _error(weight, fmt, absmax) <= _error(weight, fmt, found):
        return absmax
    return found


def _clipped(finite: Tensor, absmax: Tensor, fmt: Format) -> Tensor:
    """The maxima of least squared error for flat weights that begin with a block."""
    size = fmt.group_size or 1
    values = table(fmt.name)

    def error(factors: Tensor) -> Tensor:
        most = absmax * factors
        found = table_lookup(values, _nearest(finite, most, fmt))
        squares = (found * most.repeat_interleave(size)[: len(finite)] - finite).square_()
        squares = functional.pad(squares, (0, -len(finite) % size))
        return squares.view(-1, size).sum(1, dtype=torch.float64)

    return absmax * best_factors(error, absmax)


def _error(weight: Tensor, fmt: Format, absmax: Tensor) -> float:
    """The squared error of the weight ``[out, in]`` as it is stored."""
    total = 0.0
    parts = zip(_approx(weight, fmt, absmax), flat_chunks(weight, fmt.group_size or 1), strict=True)
    for (_, _, approx), (_, given) in parts:
        squares = (approx - finite_and_broken(given)[0]).square_()
        total += float(squares.sum(dtype=torch.float64))
    return total


def _block_maxima(finite: Tensor, size: int) -> Tensor:
    """Greatest magnitude of every block; a last block that is shorter has at least `LEAST`."""
    missing = -len(finite) % size
    maxima = functional.pad(finite.abs(), (0, missing)).view(-1, size).amax(1)
    if missing:
        maxima[-1:].clamp_(min=LEAST)
    return maxima


def stored_maxima(absmax: Tensor, fmt: Format) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Block maxima as they are stored, what they are multiples of, and their offset."""
    if ("dq", True) not in fmt.options:
        return absmax, None, None
    offset = absmax.mean().reshape(1)
    centred = absmax - offset
    nested = functional.pad(centred.abs(), (0, -len(centred) % NESTED_BLOCK))
    nested = nested.view(-1, NESTED_BLOCK).amax(1)
    inverse = nested.reciprocal().masked_fill(nested == 0, 0)
    scaled = centred * inverse.repeat_interleave(NESTED_BLOCK)[: len(centred)]
    # A maximum so small that its reciprocal is infinite makes NaN of a 0.
    codes = _nearest_dynamic(scaled.clamp_(-1, 1).nan_to_num_(0.0))
    empty = (nested == 0).repeat_interleave(NESTED_BLOCK)[: len(codes)]
    return codes.masked_fill_(empty, 0), nested, offset


def _nearest_dynamic(scaled: Tensor) -> Tensor:
    """uint8 codes of the dynamic type for numbers from −1 to 1.

    As bitsandbytes has it on a CPU: numbers are rounded to one of 65536 steps first, and a step
    takes the nearest value, the lesser one on a tie.
    """
    values = dynamic_table()
    steps = -1 + (2 * torch.arange(1 << 16, dtype=torch.float32)) / 65535
    nearest = torch.searchsorted((values[:-1] + values[1:]) / 2, steps).to(torch.uint8)
    place = ((scaled + 1) * 0.5 * 65535 + 0.5).to(torch.int32)
    return table_lookup(nearest, place)


def _together(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Parts of the experts, stacked; the one part of a weight that has none."""
    return torch.stack(list(parts)) if weight.dim() > 2 else parts[0]


def pack(codes: Tensor, fmt: Format) -> Tensor:
    """Flat 4-bit codes, two a byte."""
    zero = 7 if fmt.name == "nf4" else 0
    pairs = functional.pad(codes, (0, len(codes) % 2), value=zero).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def _unpack(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)


class NormalFloatColumns:
    """`engine.quant.columns.Columns` of ``nf4`` and ``fp4``.

    Blocks run over the flattened weight: over columns of a row where they divide it.

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
        return table_lookup(self._table, codes).mul_(maxima)

    def stored(self) -> NormalFloat:
        absmax = torch.stack(self._found, 1).flatten() if self.group else self._stored
        codes = pack(self._codes.T.flatten(), self._fmt)
        name, shape = self._fmt.name, self._shape
        return NormalFloat(codes, absmax, self._nested, self._offset, name, self._size, shape)


ARITHMETIC = Arithmetic(
    quantize=lambda weight, fmt, _dtype, _name: quantize_normal_float(weight, fmt),
    write=lambda weight, fmt, _dtype, out, _name: write_dequantized(weight, fmt, out),
    columns=lambda W, fmt, _dtype, _name: NormalFloatColumns(W, fmt),
    levels=lambda _: Levels(),
)
