"""quanto: ``P.weight._data`` in int8 or fp8, with ``P.weight._scale`` for each row or one for all.

2 and 4 bits are ``P.weight._data._data`` with a ``_scale`` and a ``_shift`` for each group: the
weight as a matrix of groups, ``[weights / group, group]``, is packed along its first dimension, its
first half (quarter) in the low bits of a byte. ``code · scale - shift``, each operation rounded;
``(code - shift) · scale`` where shifts are whole numbers. The file does not say what shape they are
of: that follows from the config (`engine.checkpoint.packed.sizes`).

Source: optimum-quanto 0.2.7, ``tensor/qbytes.py``, ``qbits.py``, ``packed.py`` and ``grouped.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import declared_config
from engine.checkpoint.packed.form import float8_form, integer_form
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.packed.sizes import linear_shape
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

_CODES = re.compile(r"\.weight\._data(\._data)?$")
_FLOATS = ("float8_e4m3fn", "float8_e5m2")
_PACKED, _SCALE, _SHIFT = ".weight._data._data", ".weight._scale", ".weight._shift"


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    for pieces in pieces_of(checkpoint, ".weight._data", (_SCALE,)):
        yield _of_eight_bits(pieces)
    for pieces in pieces_of(checkpoint, _PACKED, (_SCALE, _SHIFT)):
        yield _of_fewer_bits(pieces)


def _of_eight_bits(pieces: Pieces) -> QuantisedWeight:
    pieces.expect(".weight._data", ("int8", *_FLOATS))
    shape = pieces.codes.shape
    if len(shape) != 2:
        raise pieces.unlike(".weight._data", "[out, in]")
    pieces.expect(_SCALE, FLOATS, (shape[0], 1), (1, 1), (1,), ())
    rows = shape[0] > 1 and pieces[_SCALE].elements == shape[0]
    codes = pieces.codes.dtype
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=shape,
        dtype=pieces[_SCALE].dtype,
        layout=READER.name,
        form=integer_form(8, None if rows else 0, symmetric=True)
        if codes == "int8"
        else float8_form(codes, "channel" if rows else "tensor"),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load_eight_bits, pieces),
    )


def _load_eight_bits(pieces: Pieces) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    codes, scales = pieces.read(".weight._data"), pieces.read(_SCALE).reshape(-1, 1)
    integers = codes.dtype == torch.int8
    return Grid(
        unpack=lambda a, b: codes[a:b].view(torch.uint8) ^ 128 if integers else codes[a:b],
        scales=scales,
        dtype=scales.dtype,
        levels=256 if integers else 0,
        middle=128 if integers else 0,
        rows_each=len(codes) // len(scales),
    )


# --- 2 and 4 bits ---------------------------------------------------------------------------------


def _of_fewer_bits(pieces: Pieces) -> QuantisedWeight:
    pieces.expect(_PACKED, ("uint8",))
    pieces.expect(_SCALE, FLOATS)
    if len(pieces.codes.shape) != 2 or not pieces.codes.elements:
        raise pieces.unlike(_PACKED, "groups in rows")
    group, groups = pieces.codes.shape[1], pieces[_SCALE].elements
    pieces.expect(_SCALE, FLOATS, (groups, 1))
    pieces.expect(_SHIFT, (*FLOATS, "int8", "uint8", "int32"), (groups, 1))
    bits = _bits(pieces, groups)
    shape = linear_shape(pieces.checkpoint, pieces.prefix, groups * group)
    if shape is None or shape[1] % group:
        raise pieces.refusal(
            f"what shape its {groups * group} weights are of is neither in the file nor known "
            "from the config and the layer's name; open the checkpoint it was made from"
        )
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=shape,
        dtype=pieces[_SCALE].dtype,
        layout=READER.name,
        form=integer_form(bits, None if group == shape[1] else group, symmetric=False),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load_fewer_bits, pieces, bits, shape),
    )


def _bits(pieces: Pieces, groups: int) -> int:
    """Of a code: by how many groups a row of bytes holds, else as the config says."""
    rows = pieces.codes.shape[0]
    fitting = [bits for bits in (2, 4) if rows == -(-groups * bits // 8)]
    said = {"int2": 2, "int4": 4}.get(str(declared_config(pieces.checkpoint).get("weights")))
    if said in fitting or len(fitting) == 1:
        return said if said in fitting else fitting[0]
    raise pieces.unlike(_PACKED, f"{groups} groups in codes of 2 or 4 bits")


def _load_fewer_bits(pieces: Pieces, bits: int, shape: tuple[int, int]) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    packed, (out, inputs) = pieces.read(_PACKED), shape
    each, mask = inputs // packed.shape[1], (1 << bits) - 1
    scales = pieces.read(_SCALE).reshape(out, each)
    shifts = pieces.read(_SHIFT).reshape(out, each)

    def unpack(first: int, last: int) -> Tensor:
        groups = torch.arange(first * each, last * each)
        place, row = groups // len(packed), groups % len(packed)
        codes = packed[row] >> (place * bits).to(torch.uint8)[:, None]
        return (codes & mask).view(last - first, inputs)

    floats = shifts.is_floating_point()
    return Grid(
        unpack=unpack,
        scales=scales,
        dtype=scales.dtype,
        levels=1 << bits,
        zeros=None if floats else shifts,
        offsets=-shifts if floats else None,
        rounded=floats,
    )


READER = Reader(
    name="quanto",
    recognises=lambda _, tensor: _CODES.search(tensor.name) is not None,
    methods=("quanto",),
    weights=_weights,
)
