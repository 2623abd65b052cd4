"""torchao: ``P._weight_qdata`` with its scales, described in the file's metadata.

``Int8Tensor`` and ``IntxUnpackedToInt8Tensor``: a code in int8, less the zero point, times the
scale of its block; ``Float8Tensor``: fp8 times the scale of its block. 4-bit integers are read by
`engine.checkpoint.packed.torchao_int4`, microscaling formats by
`engine.checkpoint.packed.torchao_mx`. Other kinds are named and refused.

Source: torchao 0.18.0, ``prototype/safetensors``, ``quantization/quantize_/workflows``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo, read_metadata
from engine.checkpoint.packed.form import float8_form, integer_form
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.packed.torchao_described import (
    CODES,
    SCALE,
    SCALE_AND_ZERO,
    ZERO,
    Described,
    described,
)
from engine.checkpoint.packed.torchao_int4 import int4
from engine.checkpoint.packed.torchao_mx import WHOLE, microscaled
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight
from engine.errors import CheckpointError

_CODES = re.compile(r"\._weight_qdata$")
_INTEGERS, _FLOAT = ("Int8Tensor", "IntxUnpackedToInt8Tensor"), "Float8Tensor"
_INT4 = ("Int4Tensor", "Int4PlainInt32Tensor", "Int4TilePackedTo4dTensor")
_MICROSCALED = ("MXTensor", "NVFP4Tensor")
_OPTIONAL = ("act_quant_scale", "act_quant_zero_point", "act_pre_scale", "act_per_tensor_scale")
_BESIDE = (SCALE, ZERO, SCALE_AND_ZERO, WHOLE, *(f"._weight_{name}" for name in _OPTIONAL))
_BITS = re.compile(r"int([1-8])")


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    metadata: dict[str, str] | None = None
    for pieces in pieces_of(checkpoint, CODES, (), _BESIDE):
        if SCALE not in pieces and SCALE_AND_ZERO not in pieces:
            raise _without(pieces, SCALE)
        if metadata is None:
            files = [] if checkpoint.pickled else checkpoint.files
            metadata = {k: v for file in files for k, v in read_metadata(file).items()}
        yield _weight(described(pieces, metadata.get(f"{pieces.prefix}.weight", "")))


def _weight(found: Described) -> QuantisedWeight:
    pieces, kind = found.pieces, found.kind
    if kind not in (*_INTEGERS, _FLOAT, *_INT4, *_MICROSCALED):
        raise found.refusal(f"the file's metadata says that it is {kind!r}, which is not read")
    if "._weight_act_pre_scale" in pieces:
        raise found.refusal("its inputs are scaled first, which is not read")
    needed = SCALE_AND_ZERO if kind == "Int4TilePackedTo4dTensor" else SCALE
    if needed not in pieces:
        raise _without(pieces, needed)
    if kind in _INT4:
        return int4(found, READER.name)
    return microscaled(found, READER.name) if kind in _MICROSCALED else _by_blocks(found)


def _without(pieces: Pieces, ending: str) -> CheckpointError:
    return CheckpointError(
        f"{pieces.codes.file} stores {pieces.codes.name!r} without its {ending[1:]!r}: no "
        f"{pieces.prefix + ending!r} in {pieces.checkpoint.folder}; download or save it again"
    )


def _by_blocks(found: Described) -> QuantisedWeight:
    """A weight with a code in 8 bits, in blocks."""
    pieces = found.pieces
    shape, scale = pieces.codes.shape, pieces[SCALE]
    pieces.expect(SCALE, FLOATS)
    pieces.expect(CODES, ("int8",) if found.kind in _INTEGERS else ("float8_e4m3fn", "float8_e5m2"))
    fits = len(shape) == len(scale.shape) == 2 and all(
        count and size % count == 0 for size, count in zip(shape, scale.shape, strict=True)
    )
    if not fits:
        raise pieces.unlike(SCALE, f"scales of blocks that divide {list(shape)}")
    if ZERO in pieces:
        pieces.expect(ZERO, (*FLOATS, "int8", "int32", "int64"), scale.shape)
    rows, columns = (size // count for size, count in zip(shape, scale.shape, strict=True))
    bits = _BITS.fullmatch(found.text("target_dtype") or "int8")
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=shape,
        dtype=found.dtype,
        layout=READER.name,
        form=_form(pieces.codes, int(bits[1]) if bits else 8, rows, columns),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load, pieces, found.dtype, rows, int(bits[1]) if bits else 8),
    )


def _form(codes: TensorInfo, bits: int, rows: int, columns: int) -> str:
    shape = codes.shape
    whole = columns == shape[1]
    if codes.dtype != "int8":
        per = "tensor" if rows == shape[0] else "channel"
        return float8_form(codes.dtype, per if whole else f"block{columns}")
    group = columns if not whole else None if rows == 1 else 0
    return integer_form(bits, group, symmetric=None)


def _load(pieces: Pieces, dtype: str, rows: int, bits: int) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    codes, scales = pieces.read(CODES), pieces.read(SCALE)
    integers = codes.dtype == torch.int8
    half = 1 << (bits - 1)
    if integers and codes.numel() and not -half <= int(codes.min()) <= int(codes.max()) < half:
        raise pieces.refusal(f"its codes are beyond {bits} bits; download or save it again")
    zeros = None
    if ZERO in pieces:
        zeros = pieces.read(ZERO).to(torch.float32).reshape(scales.shape) + half
    return Grid(
        # From codes around 0 to codes from 0 on.
        unpack=lambda a, b: (codes[a:b].short() + half) if integers else codes[a:b],
        scales=scales,
        dtype=getattr(torch, dtype),
        levels=1 << bits if integers else 0,
        zeros=zeros,
        middle=half if integers else 0,
        rows_each=rows,
    )


READER = Reader(
    name="torchao",
    recognises=lambda _, tensor: _CODES.search(tensor.name) is not None,
    methods=("torchao",),
    weights=_weights,
)
