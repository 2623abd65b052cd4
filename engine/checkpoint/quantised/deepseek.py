"""DeepSeek V4: ``P.weight`` in fp8, or two 4-bit numbers an int8, with powers of two: ``P.scale``.

A scale serves a block: of fp8 128 rows of 128 inputs, of 4 bits 32 inputs of one row; the shapes
tell. The first number of a byte is in its low half.

Source: transformers 5.23, ``integrations/finegrained_fp8.py`` (``Fp8Dequantize``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import model_dtype
from engine.checkpoint.packed.form import float8_form
from engine.checkpoint.packed.pieces import E8M0, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

_SCALE = ".scale"
_BLOCK, _FLOAT8 = 128, "float8_e4m3fn"


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    for pieces in pieces_of(checkpoint, ".weight", (), (_SCALE,), ("int8", "uint8", _FLOAT8)):
        if _SCALE in pieces and pieces[_SCALE].dtype in (*E8M0, "float32"):
            yield _weight(pieces)


def _weight(pieces: Pieces) -> QuantisedWeight:
    if len(pieces.codes.shape) != 2:
        raise pieces.unlike(".weight", "[out, in]")
    packed = pieces.codes.dtype != _FLOAT8
    out, width = pieces.codes.shape
    inputs = 2 * width if packed else width
    size = (1, 32) if packed else (_BLOCK, _BLOCK)
    shape = (-(-out // size[0]), -(-inputs // size[1]))
    pieces.expect(_SCALE, E8M0 if packed else (*E8M0, "float32"), shape)
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(out, inputs),
        dtype=model_dtype(pieces.checkpoint),
        layout=READER.name,
        form="mxfp4" if packed else float8_form(_FLOAT8, f"block{_BLOCK}"),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load, pieces, inputs, size),
    )


def _load(pieces: Pieces, inputs: int, size: tuple[int, int]) -> Loaded:
    import torch

    from engine.checkpoint.packed.floats import E2M1, powers_of_two
    from engine.checkpoint.packed.grid import Grid, regular
    from engine.checkpoint.packed.unpacking import unpacked

    codes, scales = pieces.read(".weight"), pieces.read(_SCALE)
    scales = scales if scales.dtype == torch.float32 else powers_of_two(scales)
    packed = codes.dtype != torch.float8_e4m3fn
    return Grid(
        unpack=lambda a, b: unpacked(codes[a:b], 4, inputs) if packed else codes[a:b],
        scales=scales,
        dtype=getattr(torch, model_dtype(pieces.checkpoint)),
        levels=16 if packed else 0,
        table=E2M1 if packed else None,
        index=regular(torch.arange(inputs) // size[1], scales.shape[1]),
        rows_each=size[0],
    )


READER = Reader(
    name="deepseek-v4",
    recognises=lambda checkpoint, tensor: (
        tensor.dtype == "int8"
        and tensor.name.endswith(".weight")
        and f"{tensor.name.removesuffix('.weight')}{_SCALE}" in checkpoint.tensors
    ),
    methods=("fp8",),
    weights=_weights,
)
