"""BitNet: −1, 0 and 1 in 2 bits, ``P.weight`` uint8 ``[out / 4, in]`` with one ``P.weight_scale``.

A byte holds four rows that are a quarter of the weight apart, the first in the lowest bits. The
output is divided by the scale; with ``linear_class: autobitlinear`` it is multiplied by it.

Source: transformers 5.23, ``integrations/bitnet.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import declared_config
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    config = declared_config(checkpoint)
    if config.get("quant_method") != "bitnet":
        return
    for pieces in pieces_of(checkpoint, ".weight", (), (".weight_scale",), ("uint8",)):
        if len(pieces.codes.shape) != 2:
            continue
        if ".weight_scale" not in pieces:
            raise pieces.refusal("there is no 'weight_scale' beside it; download or save it again")
        pieces.expect(".weight_scale", FLOATS, (), (1,))
        quarter, inputs = pieces.codes.shape
        divides = config.get("linear_class") != "autobitlinear"
        yield QuantisedWeight(
            name=f"{pieces.prefix}.weight",
            shape=(4 * quarter, inputs),
            dtype=pieces[".weight_scale"].dtype,
            layout=READER.name,
            form="bitnet 2 bits",
            pieces=pieces.names,
            bits=pieces.bits,
            load=partial(_load, pieces, divides),
        )


def _load(pieces: Pieces, divides: bool) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    stored, scale = pieces.read(".weight"), pieces.read(".weight_scale").reshape(1, 1)
    quarter = len(stored)

    def unpack(first: int, last: int) -> Tensor:
        rows = torch.arange(first, last)
        return (stored[rows % quarter] >> (2 * (rows // quarter).to(torch.uint8))[:, None]) & 3

    return Grid(
        unpack=unpack,
        scales=1 / scale.to(torch.float32) if divides else scale,
        dtype=scale.dtype,
        levels=3,
        middle=1,
        rows_each=4 * quarter,
    )


READER = Reader(
    name="bitnet",
    recognises=lambda *_: False,
    methods=("bitnet",),
    weights=_weights,
)
