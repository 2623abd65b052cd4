"""``fp8-e4m3`` and ``fp8-e5m2``: 8-bit floats with one scale per channel, tensor or block.

``scale = max|w| / max_float8``, rounded to the dtype it is stored in; codes are ``w / scale``
rounded to the nearest float8, ties to even; ``Ŵ = code · scale`` in float32 (Micikevicius et al.
2022, arXiv 2209.05433). ``fp8-e4m3`` equals compressed-tensors bit for bit (``FP8_DYNAMIC``,
``FP8_BLOCK``), which has no e5m2: that follows the same rule with its own greatest value, 57344.
``+clip`` takes less than ``max|w|`` where that loses less.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic, Levels
from engine.quant.columns import group_index
from engine.quant.data_free.clip import best_factors, clips
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.scales import stored_scale
from engine.quant.stored import Encoded, joined, write_rows

FLOAT8 = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}


@dataclass(frozen=True, eq=False)
class Float8:
    """An 8-bit float weight ``[out, in]`` or ``[experts, out, in]``."""

    codes: Tensor
    """float8 in the shape of the weight."""
    scale: Tensor
    """``[…, out, 1]`` per channel, ``[…, 1, 1]`` per tensor, and ``[…, ⌈out/128⌉, ⌈in/128⌉]`` per
    block, in the dtype it is stored in. The last blocks of a row and of a column may be smaller."""
    block_size: int | None
    """Rows and columns of a block; None where blocks do not share scales."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ = code · scale``, worked out in float32 and cast last."""
        scale = _spread(self.scale.to(torch.float32), self.codes.shape, self.block_size)
        return (self.codes.to(torch.float32) * scale).to(dtype)


def quantize_float8(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Float8:
    """Round a weight ``[out, in]`` or ``[experts, out, in]`` to the nearest 8-bit floats.

    Values that are not finite take no part in a range and get the code of 0.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    found = joined(lambda matrix: _encoded(matrix, fmt, scale_dtype, name), weight.detach())
    if fmt.strategy == "tensor":  # every part came with the same scale
        return dataclasses.replace(found, scale=found.scale[..., :1, :])
    return found


def write_dequantized(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, out: Tensor, name: str = "weight"
) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; raises as `quantize_float8` does."""
    write_rows(weight, _encoded(weight, fmt, scale_dtype, name), out)


def float8_scales(
    finite: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> tuple[Tensor, Tensor]:
    """Scales as they are stored, and what to divide by, of weights that are all there are.

    Args:
        finite: float32 ``[rows, in]``.
        fmt: The format, with its ``+clip``.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for the error message.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    return _scales(_fitted_maxima(finite, fmt, scale_dtype, name), fmt, scale_dtype, name)


def float8_codes(finite: Tensor, divisor: Tensor, fmt: Format) -> Tensor:
    """The nearest 8-bit floats; ``divisor`` broadcasts against the weights."""
    greatest = torch.finfo(FLOAT8[fmt.name]).max
    return (finite / divisor).clamp_(-greatest, greatest).to(FLOAT8[fmt.name])


def _encoded(weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> Encoded[Float8]:
    shared = None
    if fmt.strategy == "tensor":
        shared = _tensor_maximum(weight)
        if clips(fmt):

            def whole_error(factors: Tensor, most: Tensor = shared) -> Tensor:
                parts = (finite_and_broken(weight[rows])[0] for rows in row_chunks(weight))
                sums = [_lost(p, most * factors, fmt, scale_dtype, name) for p in parts]
                return torch.stack(sums).sum().reshape(1, 1)

            shared = shared * best_factors(whole_error, shared)
    for rows in row_chunks(weight, _block(fmt) or 1):
        finite, broken = finite_and_broken(weight[rows])
        maxima = _fitted_maxima(finite, fmt, scale_dtype, name) if shared is None else shared
        yield rows, broken, _encode(finite, maxima, fmt, scale_dtype, name)


def _encode(
    finite: Tensor, maxima: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str
) -> Float8:
    scale, divisor = _scales(maxima, fmt, scale_dtype, name)
    block = _block(fmt)
    return Float8(float8_codes(finite, _spread(divisor, finite.shape, block), fmt), scale, block)


def _scales(
    maxima: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str
) -> tuple[Tensor, Tensor]:
    # A tensor on the device: CUDA turns division by a Python number into a product, which differs.
    greatest = torch.tensor(torch.finfo(FLOAT8[fmt.name]).max, device=maxima.device)
    return stored_scale(maxima / greatest, scale_dtype, fmt, name)


def _fitted_maxima(finite: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> Tensor:
    """The magnitudes that scales are made of, or with ``+clip`` those that lose least."""
    maxima = _maxima(finite, fmt)
    if not clips(fmt):
        return maxima
    return maxima * best_factors(
        lambda factors: _lost(finite, maxima * factors, fmt, scale_dtype, name), maxima
    )


def _lost(
    finite: Tensor, maxima: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str
) -> Tensor:
    """The squared error of all that share a scale, float64, in the shape of ``maxima``."""
    squares = (_encode(finite, maxima, fmt, scale_dtype, name).approx() - finite).square_()
    if fmt.strategy == "tensor":
        return squares.sum(dtype=torch.float64).reshape(1, 1)
    if (block := _block(fmt)) is not None:
        return _in_blocks(squares, block).sum((1, 3), dtype=torch.float64)
    return squares.sum(-1, keepdim=True, dtype=torch.float64)


def _block(fmt: Format) -> int | None:
    return fmt.group_size if fmt.strategy == "block" else None


def _maxima(rows: Tensor, fmt: Format) -> Tensor:
    """Greatest magnitudes, ``[rows, 1]``, ``[1, 1]`` or ``[⌈rows/block⌉, ⌈in/block⌉]``."""
    if fmt.strategy == "tensor":
        return rows.abs().amax().reshape(1, 1)
    if (block := _block(fmt)) is not None:
        return _in_blocks(rows.abs(), block).amax((1, 3))
    return rows.abs().amax(-1, keepdim=True)


def _in_blocks(rows: Tensor, block: int) -> Tensor:
    """``[⌈rows/block⌉, block, ⌈in/block⌉, block]``, filled up with zeros."""
    padded = functional.pad(rows, (0, -rows.shape[1] % block, 0, -rows.shape[0] % block))
    return padded.reshape(-1, block, padded.shape[1] // block, block)


def _tensor_maximum(weight: Tensor) -> Tensor:
    """The greatest finite magnitude, ``[1, 1]``."""
    found = [finite_and_broken(weight[rows])[0].abs().amax() for rows in row_chunks(weight)]
    return torch.stack(found).amax().reshape(1, 1)


def _spread(scale: Tensor, shape: torch.Size, block: int | None) -> Tensor:
    """Scales that broadcast against the weight."""
    if block is None:
        return scale
    wide = scale.repeat_interleave(block, -2).repeat_interleave(block, -1)
    return wide[..., : shape[-2], : shape[-1]]


class Float8Columns:
    """`engine.quant.columns.Columns` of an fp8 format."""

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
        divisor, scale = self._factors[group_index(place, self.group)]
        codes = float8_codes(w, divisor, self._fmt)
        self._codes[place] = codes[0]
        return codes.to(torch.float32).mul_(scale)

    def stored(self) -> Float8:
        return Float8(self._codes.T.contiguous(), torch.cat(self._scales, 1), self.group)


ARITHMETIC = Arithmetic(
    quantize=quantize_float8,
    write=write_dequantized,
    columns=Float8Columns,
    levels=lambda _: Levels(),
)
