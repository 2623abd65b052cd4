"""Which shapes a format can hold, and the bits it takes.

Shapes are ``[out, in]``, or ``[experts, out, in]`` where each expert is a weight of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.family import SCALE_BITS, family_of
from engine.formats.grammar import Format, parse_format

COLUMN_BITS = 32
"""The number of a column that ``+outlier`` keeps."""


def why_not_held(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why a weight of ``shape`` cannot take the format; None if it can.

    Where a family stores whole blocks (`Base.row_multiple`: GGUF, mx, nv), the block size must
    divide the row. Integer formats end in a shorter group, and ``nf4`` and ``fp4`` run over the
    flattened weight. Kept formats hold any shape.
    """
    if fmt.kept:
        return None
    if len(shape) not in (2, 3):
        return f"{fmt} holds weights [out, in] or [experts, out, in], not {list(shape)}"
    if 0 in shape:
        return f"a weight of shape {list(shape)} has no values to quantise"
    divisor = BASES[fmt.name].row_multiple
    if shape[-1] % divisor:
        return f"rows of {shape[-1]} do not divide into the blocks of {divisor} of {fmt.name}"
    return None


def stored_bits(fmt: Format, shape: Sequence[int], columns: int = 0) -> int:
    """Bits of a weight: its codes, scales and zero points.

    Each family in `engine.formats.families` defines what it counts. What methods store in addition
    (an online scale, GPTQ's column order) is not counted.

    Args:
        fmt: The format.
        shape: Of the weight.
        columns: Input channels that ``+outlier`` keeps in 16 bits, of all experts together. Only
            calibration can tell how many; with 0 the result is a lower bound.

    Raises:
        FormatError: The weight cannot take the format.
    """
    if (why := why_not_held(fmt, shape)) is not None:
        raise FormatError(why)
    out, row = (1, 1, *shape)[-2:]  # a kept tensor may have any shape
    kept = columns * (SCALE_BITS * out + COLUMN_BITS)
    return math.prod(shape[:-2]) * family_of(fmt).stored_bits(fmt, out, row) + kept


@lru_cache(maxsize=4096)
def bits_of(format: str, shape: tuple[int, ...]) -> int:
    """`stored_bits` of a format's text, remembered: tables ask for few formats and shapes often.

    Raises:
        FormatError: see `stored_bits`.
    """
    return stored_bits(parse_format(format), shape)


@lru_cache(maxsize=4096)
def can_hold(format: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight can take a format; see `why_not_held`."""
    return why_not_held(parse_format(format), shape) is None
