"""Weights of torchao in microscaling formats: ``MXTensor`` and ``NVFP4Tensor``.

fp8, or two 4-bit numbers a byte, the first in the low half; a power of two for each 32, or an fp8
scale for each 16 that a ``per_tensor_scale`` multiplies, if there is one. Scales may be stored in
the order in which a GPU takes them: blocks of 128 rows of 4, whose rows 0, 32, 64 and 96 are side
by side.

Source: torchao 0.18.0, ``prototype/mx_formats``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from engine.checkpoint.packed.torchao_described import CODES, SCALE, Described
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = "._weight_per_tensor_scale"
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


def microscaled(found: Described, layout: str) -> QuantisedWeight:
    """A weight in one of these kinds.

    Raises:
        CheckpointError: a piece is of another dtype or shape; names it.
    """
    pieces, nv = found.pieces, found.kind == "NVFP4Tensor"
    pieces.expect(CODES, ("uint8",) if nv else ("uint8", *_FLOAT8))
    if len(pieces.codes.shape) != 2:
        raise found.refusal("it is of more than two dimensions, which is not read")
    packed = pieces.codes.dtype == "uint8"
    if packed and not nv and found.text("elem_dtype") != "float4_e2m1fn_x2":
        raise found.refusal(f"its numbers are {found.text('elem_dtype')!r}, which is not read")
    out, width = pieces.codes.shape
    inputs, size = width * (2 if packed else 1), 16 if nv else 32
    if found.about.get("block_size") != size or inputs % size:
        raise found.refusal(f"its blocks are of {found.about.get('block_size')!r}, not of {size}")
    swizzled = found.about.get("is_swizzled_scales") is True
    groups = inputs // size
    shape = (32 * -(-out // 128), 16 * -(-groups // 4)) if swizzled else (out, groups)
    pieces.expect(SCALE, ("float8_e4m3fn",) if nv else ("float8_e8m0fnu",), shape)
    if WHOLE in pieces:
        pieces.expect(WHOLE, ("float32",), (), (1,))
    fp8 = "mxfp8-e5m2" if pieces.codes.dtype == "float8_e5m2" else "mxfp8"
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(out, inputs),
        dtype=found.dtype,
        layout=layout,
        form="nvfp4" if nv else "mxfp4" if packed else fp8,
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load, found, (out, groups), swizzled),
    )


def _load(found: Described, shape: tuple[int, int], swizzled: bool) -> Loaded:
    import torch

    from engine.checkpoint.packed.floats import E2M1, powers_of_two
    from engine.checkpoint.packed.grid import Grid
    from engine.checkpoint.packed.unpacking import unpacked

    pieces = found.pieces
    codes, stored = pieces.read(CODES), pieces.read(SCALE)
    if swizzled:
        stored = _in_rows(stored.view(torch.uint8), shape).view(stored.dtype)
    scales = stored.to(torch.float32)
    if found.kind == "MXTensor":
        scales = powers_of_two(stored)
    elif WHOLE in pieces:
        scales = pieces.read(WHOLE).reshape(()) * scales
    packed = codes.dtype == torch.uint8
    inputs = codes.shape[1] * (2 if packed else 1)
    return Grid(
        unpack=lambda a, b: unpacked(codes[a:b], 4, inputs) if packed else codes[a:b],
        scales=scales,
        dtype=getattr(torch, found.dtype),
        levels=16 if packed else 0,
        table=E2M1 if packed else None,
    )


def _in_rows(blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Scales ``[rows, groups]`` out of the order in which a GPU takes them."""
    rows, groups = shape
    down, across = -(-rows // 128), -(-groups // 4)
    whole = blocks.reshape(down, across, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return whole.reshape(128 * down, 4 * across)[:rows, :groups].contiguous()
