"""`Arithmetic`: the half of a format family that needs torch.

`engine.formats.family.Family` is the other half and names this one; `arithmetic_of` finds it for a
format. All quantisation goes through here, so that no list of families is kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.family import family_of
from engine.formats.grammar import Format
from engine.plugins import resolve
from engine.quant.columns import Columns
from engine.quant.rows import finite_and_broken, restored, row_chunks
from engine.quant.stored import StoredWeight


@dataclass(frozen=True)
class Levels:
    """For formats whose values in a group follow from the range of that group alone."""

    codes: tuple[float, ...] = ()
    """All codes as multiples of the smallest positive value, if they are symmetric about 0; empty
    if they are a uniform ramp over the range."""
    beside_greatest: bool = False
    """Whether scales are rounded relative to the largest magnitude of the tensor."""


@dataclass(frozen=True)
class Arithmetic:
    """How a family rounds weights; only `quantize` is required.

    Everything is computed in float32. Functions take the format, the dtype that scales are stored
    in, and the name of the tensor for error messages; they raise `FormatError` if a scale is too
    large for its dtype.
    """

    quantize: Callable[[Tensor, Format, torch.dtype, str], StoredWeight]
    """The stored form of ``[out, in]``, or of ``[experts, out, in]`` with each expert on its own.
    Non-finite values count as 0."""
    write: Callable[[Tensor, Format, torch.dtype, Tensor, str], None] | None = None
    """Writes ``Ŵ`` of ``[out, in]`` into the float32 tensor before the name, a few rows at a time;
    non-finite values are copied. None means through `quantize`."""
    columns: Callable[[Tensor, Format, torch.dtype, str], Columns] | None = None
    """The columns of a finite float32 weight ``[in, out]`` before rounding, for solvers such as
    ``+gptq``; None for a family without a solver."""
    weighed: Callable[[Tensor, Format, Tensor, str], StoredWeight] | None = None
    """As `quantize`, given the importance of inputs ``[in]`` or ``[experts, in]`` instead of a
    dtype; for a family that has ``+imatrix``."""
    levels: Callable[[Format], Levels | None] = lambda _: None
    """How the values of a group follow from its range; None if every weight matters."""
    by_row: Callable[[Format], bool] = lambda _: False
    """Whether rows share no scale, so that a few rows at a time give the same ``Ŵ``."""


def arithmetic_of(fmt: Format) -> Arithmetic:
    """The arithmetic of a format's family, imported on first use."""
    return _loaded(family_of(fmt).arithmetic)


def write_dequantized(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, out: Tensor, name: str
) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; non-finite values are copied."""
    arithmetic = arithmetic_of(fmt)
    if arithmetic.write is not None:
        arithmetic.write(weight, fmt, scale_dtype, out, name)
        return
    out.copy_(arithmetic.quantize(weight, fmt, scale_dtype, name).approx())
    for rows in row_chunks(weight):
        _, broken = finite_and_broken(weight[rows])
        out[rows] = restored(out[rows], broken, weight[rows])


def weighed(weight: Tensor, fmt: Format, importance: Tensor, name: str) -> StoredWeight:
    """The stored form of a weight where errors are weighed by the importance of inputs.

    Args:
        weight: ``[out, in]`` or ``[experts, out, in]``; not modified.
        fmt: The format, without ``+imatrix``.
        importance: float32 ``[in]`` or ``[experts, in]``, not negative.
        name: The tensor, for messages.

    Raises:
        FormatError: A scale is too large for its dtype, or the family weighs no errors.
    """
    found = arithmetic_of(fmt).weighed
    if found is None:
        raise FormatError(f"{name}: {fmt} weighs no errors by the importance of inputs")
    return found(weight, fmt, importance, name)


def columns_of(W: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str) -> Columns:
    """The columns of a weight before anything is rounded, ``[in, out]``.

    Args:
        W: float32, finite; not modified.
        fmt: The format; its ``+clip`` and ``+hqq`` are applied.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for messages.

    Raises:
        FormatError: A scale is too large for its dtype, as in `Columns.fix`; or the family is not
            rounded column by column.
    """
    columns = arithmetic_of(fmt).columns
    if columns is None:
        raise FormatError(f"{name}: {fmt} is not rounded column by column")
    return columns(W, fmt, scale_dtype, name)


@cache
def _loaded(reference: str | Callable[[], object]) -> Arithmetic:
    found = resolve(reference) if isinstance(reference, str) else reference()
    if not isinstance(found, Arithmetic):
        raise TypeError(f"{reference!r} is not an Arithmetic, but {found!r}")
    return found
