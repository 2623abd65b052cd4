"""Rounds scales to their stored dtype: never 0, never infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format

EMPTY_SCALE = 2.0**-23
"""Scale of a group that holds only zeros: the epsilon of float32, as in compressed-tensors."""


def stored_scale(
    scale: Tensor, scale_dtype: torch.dtype, fmt: Format, name: str
) -> tuple[Tensor, Tensor]:
    """Round scales to the dtype they are stored in.

    A scale that is 0, before or after rounding, becomes `EMPTY_SCALE`, and its divisor infinite,
    so that every code of the group is 0.

    Args:
        scale: float32, not negative.
        scale_dtype: The dtype that scales are stored in.
        fmt: The format, for the error message.
        name: The tensor, for the error message.

    Returns:
        The scales in ``scale_dtype``, and the float32 numbers to divide weights by.

    Raises:
        FormatError: A scale is too large for ``scale_dtype``.
    """
    stored = scale.to(scale_dtype)
    if stored.isinf().any():
        raise FormatError(
            f"{name}: {fmt} needs a scale of {float(scale.max()):.3g}, and {scale_dtype} ends at "
            f"{torch.finfo(scale_dtype).max:.3g}: keep this layer, or use smaller groups"
        )
    empty = stored == 0
    stored = stored.masked_fill(empty, EMPTY_SCALE)
    return stored, stored.to(torch.float32).masked_fill(empty, math.inf)


def in_stored_dtype(values: Tensor, dtype: torch.dtype, fmt: Format, name: str) -> Tensor:
    """Values rounded to the dtype they are stored in.

    Raises:
        FormatError: A value is too large for it.
    """
    stored = values.to(dtype)
    if stored.isinf().any():
        raise FormatError(
            f"{name}: {fmt} stores values as {dtype}, which ends at {torch.finfo(dtype).max:.3g}, "
            f"and the weight goes up to {float(values.abs().max()):.3g}: keep this layer"
        )
    return stored
