"""quanto: ``P.weight._data`` in int8 or fp8, with ``P.weight._scale`` for each row or one for all.

Its 2 and 4 bits, ``P.weight._data._data``, do not say what shape they are of: recognised, not read.

Source: optimum-quanto 0.2.7, ``tensor/qbytes.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.form import float8_form, integer_form
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

_CODES = re.compile(r"\.weight\._data(\._data)?$")
_FLOATS = ("float8_e4m3fn", "float8_e5m2")


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    for pieces in pieces_of(checkpoint, ".weight._data", (".weight._scale",)):
        pieces.expect(".weight._data", ("int8", *_FLOATS))
        shape = pieces.codes.shape
        if len(shape) != 2:
            raise pieces.unlike(".weight._data", "[out, in]")
        pieces.expect(".weight._scale", FLOATS, (shape[0], 1), (1, 1), (1,), ())
        rows = shape[0] > 1 and pieces[".weight._scale"].elements == shape[0]
        codes = pieces.codes.dtype
        yield QuantisedWeight(
            name=f"{pieces.prefix}.weight",
            shape=shape,
            dtype=pieces[".weight._scale"].dtype,
            layout=READER.name,
            form=integer_form(8, None if rows else 0, symmetric=True)
            if codes == "int8"
            else float8_form(codes, "channel" if rows else "tensor"),
            pieces=pieces.names,
            bits=pieces.bits,
            load=partial(_load, pieces),
        )


def _load(pieces: Pieces) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    codes, scales = pieces.read(".weight._data"), pieces.read(".weight._scale").reshape(-1, 1)
    integers = codes.dtype == torch.int8
    return Grid(
        unpack=lambda a, b: codes[a:b].view(torch.uint8) ^ 128 if integers else codes[a:b],
        scales=scales,
        dtype=scales.dtype,
        levels=256 if integers else 0,
        middle=128 if integers else 0,
        rows_each=len(codes) // len(scales),
    )


READER = Reader(
    name="quanto",
    recognises=lambda _, tensor: _CODES.search(tensor.name) is not None,
    methods=("quanto",),
    weights=_weights,
)
