"""What a format asks of a weight's shape, and the bits that it takes.

Shapes are ``[out, in]``, or ``[experts, out, in]`` where each expert is a weight of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.grammar import FOLDED, Format, why_not_built

SCALE_BITS = 16
"""Scales of integer and fp8 formats are stored in a 16-bit dtype."""


def why_not_held(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why a weight of ``shape`` cannot take the format; None where it can.

    The blocks of GGUF, mx and nv formats must divide the row. Integer formats end in a shorter
    group, and ``nf4`` and ``fp4`` run over the flattened weight. Kept formats hold any shape.
    """
    if fmt.kept:
        return None
    if len(shape) not in (2, 3):
        return f"{fmt} holds weights [out, in] or [experts, out, in], not {list(shape)}"
    if 0 in shape:
        return f"a weight of shape {list(shape)} has no values to quantise"
    divisor = 1
    if fmt.family == "gguf" or fmt.name in ("mxfp4", "mxfp8", "nvfp4"):
        divisor = fmt.group_size or 1
    elif fmt.name == "e8-2":
        divisor = 8
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
    if fmt.family == "codebook" or fmt.name == "fp8-e5m2":
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

    Integer and fp8 scales take 16 bits, zero points as many as a code, or with ``+hqq``, which
    are not whole, 16 too. ``nf4`` and ``fp4`` keep a
    float32 maximum per block, or with ``:dq`` 8 bits, as bitsandbytes does, and fill up the last
    byte; the tables that it writes beside every weight are not counted. ``mx`` formats have an
    8-bit exponent per 32, ``nvfp4`` 8 bits per 16 and one float32; GGUF types are ggml's blocks;
    ``kmeans`` a 16-bit codebook per row, and with ``:sparse`` 16 bits and a 32-bit column for every
    outlier, and a 32-bit count per row; ``e8-2`` has one float32. What methods add beside the
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
    weights = math.prod(shape)
    if fmt.kept:
        return fmt.bits * weights
    experts, (out, row) = math.prod(shape[:-2]), shape[-2:]
    if fmt.family == "gguf":
        block = BASES[fmt.name]
        return weights // (block.group_size or 1) * block.block_bytes * 8
    if fmt.family == "codebook":
        return experts * _codebook_bits(fmt, out, row)
    scales = experts * _scales(fmt, out, row)
    if fmt.name in ("mxfp4", "mxfp8"):
        return fmt.bits * weights + 8 * scales
    if fmt.name == "nvfp4":
        return fmt.bits * weights + 8 * scales + 32 * experts
    real = any(method.name == "hqq" for method in fmt.methods)
    zero_point_bits = 0 if fmt.symmetric else SCALE_BITS if real else fmt.bits
    kept = columns * (SCALE_BITS * out + COLUMN_BITS)
    return fmt.bits * weights + (SCALE_BITS + zero_point_bits) * scales + kept


def outliers_kept(fmt: Format, weights: int) -> int:
    """How many of the weights of one expert or weight ``:sparse`` keeps beside the codes."""
    percent = dict(fmt.options).get("sparse", 0)
    return math.floor(percent / 100 * weights + 0.5)


def _scales(fmt: Format, out: int, row: int) -> int:
    size = fmt.group_size or 1
    if fmt.strategy == "tensor":
        return 1
    if fmt.strategy == "channel":
        return out
    if fmt.strategy == "block":
        return math.ceil(out / size) * math.ceil(row / size)
    return out * math.ceil(row / size)


def _codebook_bits(fmt: Format, out: int, row: int) -> int:
    """Bits of one expert or weight."""
    options = dict(fmt.options)
    if fmt.name in ("nf4", "fp4"):
        codes = 8 * math.ceil(out * row / 2)
        blocks = math.ceil(out * row / (fmt.group_size or 1))
        if "dq" not in options:
            return codes + 32 * blocks
        offset = 32
        return codes + 8 * blocks + 32 * math.ceil(blocks / 256) + offset
    if fmt.name.startswith("kmeans"):
        sparse = outliers_kept(fmt, out * row) * (SCALE_BITS + 32) + 32 * out
        dense = fmt.bits * out * row + out * (SCALE_BITS << fmt.bits)
        return dense + (sparse if outliers_kept(fmt, out * row) else 0)
    return fmt.bits * out * row + 32  # e8-2: a float32 scale
