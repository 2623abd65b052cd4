"""HQQ: ``P.W_q`` with ``P.scale`` and ``P.zero``, and a tensor for each of its settings.

The weight as a matrix of groups, ``[weights / group, group]`` (axis 1) or its opposite (axis 0), is
packed along its first dimension: its first half in the high bits of a byte, its second in the low
ones; quarters and eighths likewise; tenths of 3 bits in an int32. ``(code - zero) · scale``, each
operation rounded to ``compute_dtype``. Text and dtypes are characters in uint8; HQQ's own loader
evaluates them as Python, here they are compared with what they may be.

Source: hqq 0.2.8, ``core/bitpack.py``, ``core/quantize.py`` (``dequantize``), ``core/utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.form import integer_form
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Codes, QuantisedWeight
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_CODES = re.compile(r"\.W_q$")
_SETTINGS = (
    *("nbits", "group_size", "shape", "axis", "packing", "view_as_float", "compute_dtype"),
    *("unpack_view_dtype", "quant_scale", "quant_zero", "offload_meta", "encoded_state_dict"),
    *("stores_quant_config", "channel_wise", "optimize", "round_zero"),
)
_PACKINGS = {
    "8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8),
}  # fmt: skip
"""Bits, and codes in a word, by the name of a packing."""
_LONGEST = 64
_NESTED = ("scale_q", "zero_q", "zero_scale")


@dataclass(frozen=True)
class _Layer:
    pieces: Pieces
    bits: int
    width: int
    """Bits that a code takes in a word: 8 also of codes of 5, 6 and 7 bits."""
    each: int
    shape: tuple[int, int]
    group: int
    axis: int
    dtype: str

    @property
    def grid(self) -> tuple[int, int]:
        """The shape of the matrix of groups."""
        count = prod(self.shape) // self.group
        return (count, self.group) if self.axis == 1 else (self.group, count)


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    optional = tuple(f".{name}" for name in _SETTINGS)
    _refuse_nested(checkpoint)
    for pieces in pieces_of(checkpoint, ".W_q", (".scale", ".zero"), optional):
        layer = _layer(pieces)
        size = None if layer.group == layer.shape[1] and layer.axis == 1 else layer.group
        form = integer_form(layer.bits, size, symmetric=False)
        yield QuantisedWeight(
            name=f"{pieces.prefix}.weight",
            shape=layer.shape,
            dtype=layer.dtype,
            layout=READER.name,
            form=form if layer.axis == 1 else f"hqq {form} axis 0",
            pieces=pieces.names,
            bits=pieces.bits,
            load=partial(_Loaded, layer),
        )


def _refuse_nested(checkpoint: Checkpoint) -> None:
    """Refuse scales or zero points that are codes themselves, or one tensor.

    HQQ before 0.2 made such; their own scales are a dictionary, which safetensors cannot hold.

    Raises:
        CheckpointError: names the codes and what is beside them.
    """
    for name, stored in checkpoint.tensors.items():
        prefix, _, last = name.rpartition(".")
        if last in _NESTED and f"{prefix}.W_q" in checkpoint.tensors:
            raise CheckpointError(
                f"{stored.file} stores '{prefix}.W_q' with {last!r}: its scales are quantised "
                "themselves, which is not read; open the checkpoint it was made from"
            )


def _layer(pieces: Pieces) -> _Layer:
    """The settings of a weight, each checked to be one that there is.

    Raises:
        CheckpointError: one is missing, or is nothing that HQQ writes.
    """
    if _number(pieces, "quant_scale", 0) or _number(pieces, "quant_zero", 0):
        raise pieces.refusal(
            "its scales are quantised themselves, which is not read; open the checkpoint it was "
            "made from"
        )
    bits, axis = _number(pieces, "nbits"), _number(pieces, "axis")
    shape = _numbers(pieces, "shape")
    group = _number(pieces, "group_size", shape[-1] if shape else 0)
    packing = _text(pieces, "packing")
    dtype = _text(pieces, "compute_dtype").removeprefix("torch.")
    known = _PACKINGS.get(packing)
    if known is None or not 1 <= bits <= known[0] or dtype not in FLOATS or axis not in (0, 1):
        raise pieces.refusal(
            f"its settings are nothing that HQQ writes: packing {packing!r}, nbits {bits}, axis "
            f"{axis}, compute_dtype {dtype!r}; do not trust this checkpoint"
        )
    if len(shape) != 2 or min(shape) < 1 or group < 1 or prod(shape) % group:
        raise pieces.refusal(
            f"groups of {group} do not divide a weight of {shape}; download or save it again"
        )
    layer = _Layer(pieces, bits, known[0], known[1], (shape[0], shape[1]), group, axis, dtype)
    _check(layer)
    return layer


def _check(layer: _Layer) -> None:
    height, width = layer.grid
    words = -(-height // layer.each) * width * (4 if layer.each == 10 else 1)
    if layer.pieces.codes.bytes != words or (height % layer.each and layer.each != 10):
        raise layer.pieces.unlike(".W_q", f"{words} bytes of codes of {list(layer.shape)}")
    scales = (height, 1) if layer.axis == 1 else (1, width)
    layer.pieces.expect(".scale", FLOATS, scales)
    layer.pieces.expect(".zero", FLOATS, scales)


def _numbers(pieces: Pieces, name: str) -> list[int]:
    ending = f".{name}"
    if ending not in pieces:
        raise pieces.refusal(f"there is no {name!r} beside it; download or save it again")
    stored = pieces[ending]
    if stored.elements > 4 or "int" not in stored.dtype:
        raise pieces.unlike(ending, "a whole number")
    return [int(value) for value in pieces.read(ending).flatten().tolist()]


def _number(pieces: Pieces, name: str, otherwise: int | None = None) -> int:
    if otherwise is not None and f".{name}" not in pieces:
        return otherwise
    found = _numbers(pieces, name)
    if len(found) != 1:
        raise pieces.unlike(f".{name}", "one whole number")
    return found[0]


def _text(pieces: Pieces, name: str) -> str:
    ending = f".{name}"
    if ending not in pieces:
        raise pieces.refusal(f"there is no {name!r} beside it; download or save it again")
    stored = pieces[ending]
    if stored.dtype != "uint8" or stored.elements > _LONGEST:
        raise pieces.unlike(ending, "a short text in uint8")
    return bytes(pieces.read(ending).flatten().tolist()).decode("ascii", "replace")


class _Loaded:
    """All codes of a weight, a byte each, and what to subtract and multiply them with."""

    def __init__(self, layer: _Layer) -> None:
        import torch

        self._layer, self._dtype = layer, getattr(torch, layer.dtype)
        height, width = layer.grid
        words = layer.pieces.read(".W_q").reshape(-1)
        words = words.view(torch.int32 if layer.each == 10 else torch.uint8).view(-1, width)
        mask = (1 << layer.width) - 1
        codes = torch.empty(layer.each, *words.shape, dtype=torch.uint8)
        for place in range(layer.each):
            codes[place] = (words >> ((layer.each - 1 - place) * layer.width)) & mask
        self._codes = codes.flatten(0, 1)[:height].reshape(layer.shape)
        self._scale = layer.pieces.read(".scale").to(self._dtype).flatten()
        self._zero = layer.pieces.read(".zero").to(self._dtype).flatten()

    def _groups(self, first: int, last: int) -> Tensor:
        """The group of every weight of some rows, ``[rows · in]``."""
        import torch

        layer, inputs = self._layer, self._layer.shape[1]
        places = torch.arange(first * inputs, last * inputs)
        return places // layer.group if layer.axis == 1 else places % layer.grid[1]

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        groups = self._groups(first, last)
        codes = self._codes[first:last].flatten().to(self._dtype)
        codes.sub_(self._zero[groups]).mul_(self._scale[groups])
        return codes.view(last - first, -1)

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        import torch

        groups = torch.unique(self._groups(first, last))
        scale = self._scale[groups].to(torch.float32)
        return Codes(self._codes[first:last], 1 << self._layer.bits, scale)


READER = Reader(
    name="hqq",
    recognises=lambda _, tensor: _CODES.search(tensor.name) is not None,
    methods=("hqq",),
    weights=_weights,
)
