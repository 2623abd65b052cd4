"""What a format asks of a weight's shape, and the bits that it takes.

Shapes are ``[out, in]``, or ``[experts, out, in]`` where each expert is a weight of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.family import SCALE_BITS, family_of
from engine.formats.grammar import FOLDED, Format, why_not_built


def why_not_held(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why a weight of ``shape`` cannot take the format; None where it can.

    Where a family stores whole blocks (`Base.row_multiple`: GGUF, mx, nv), they must divide the
    row. Integer formats end in a shorter group, and ``nf4`` and ``fp4`` run over the flattened
    weight. Kept formats hold any shape.
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


def exportable(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why a weight of ``shape`` in this format cannot be exported; None where it can.

    What counts is a checkpoint in the form of compressed-tensors.
    """
    if (why := why_not_held(fmt, shape)) is not None:
        return why
    for method in fmt.methods:
        if ("online", True) in method.options:
            return f"'+{method.name}:online' scales inputs at run time, which no checkpoint stores"
    if any(method.name == "hadamard" for method in fmt.methods):
        return (
            "'+hadamard' rotates inputs and outputs at run time with signs of its own, for which "
            "no serving format has a place"
        )
    if any(method.name == "hqq" for method in fmt.methods):
        return "'+hqq' has zero points that are not whole, which compressed-tensors cannot hold"
    if fmt.family == "integer" and fmt.group_size is not None and shape[-1] % fmt.group_size:
        return (
            f"the last group of {shape[-1] % fmt.group_size} is shorter than {fmt.group_size}: "
            "compressed-tensors needs groups that divide the row"
        )
    if fmt.family == "gguf":
        return f"{fmt} is a type of GGUF files, which compressed-tensors cannot hold"
    if fmt.family in ("normal-float", "kmeans", "lattice") or fmt.name == "fp8-e5m2":
        return f"compressed-tensors has no {fmt.name}"
    if fmt.strategy == "block" and (why := _why_blocks_mislead(fmt, shape)) is not None:
        return why
    for method in fmt.methods:
        if method.name in FOLDED:
            return (
                f"'+{method.name}' is folded into the layer before, and what absorbs its scale is "
                "not written yet"
            )
    return why_not_built(fmt)


def _why_blocks_mislead(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why compressed-tensors would misread the blocks of fp8 when it unpacks them."""
    size = fmt.group_size or 1
    out, row = shape[-2:]
    if out <= size and (row <= size or row % size == 0):
        return None
    if out % size or row % size:
        return (
            f"blocks of {size} do not divide [{out}, {row}]: compressed-tensors works out the "
            "size of a block from the number of blocks, and would unpack other ones"
        )
    if row == size:
        return f"compressed-tensors takes the scales of {out // size} blocks in a column for rows"
    return None


COLUMN_BITS = 32
"""The number of a column that ``+outlier`` keeps."""


def stored_bits(fmt: Format, shape: Sequence[int], columns: int = 0) -> int:
    """Bits that a weight takes: its codes, scales and zero points.

    Each family in `engine.formats.families` says what it counts. What methods add beside the
    weight (an online scale, the column order of GPTQ) is not counted.

    Args:
        fmt: The format.
        shape: Of the weight.
        columns: Input channels that ``+outlier`` keeps in 16 bits beside the codes, of all experts
            together. Calibration tells how many: with 0 the bits are the least it can be.

    Raises:
        FormatError: The weight cannot take the format.
    """
    if (why := why_not_held(fmt, shape)) is not None:
        raise FormatError(why)
    out, row = (1, 1, *shape)[-2:]  # a kept tensor may have any shape
    kept = columns * (SCALE_BITS * out + COLUMN_BITS)
    return math.prod(shape[:-2]) * family_of(fmt).stored_bits(fmt, out, row) + kept
