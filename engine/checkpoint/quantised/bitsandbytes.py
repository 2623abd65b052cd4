"""bitsandbytes: nf4 and fp4, their maxima maybe quantised themselves, and LLM.int8().

4 bits: ``P.weight`` is a stream of bytes over the flattened weight, two codes each, the first in
the high half; ``P.weight.absmax`` the greatest magnitude of each block; ``P.weight.quant_map`` what
each code stands for; ``P.weight.quant_state.bitsandbytes__nf4`` JSON with shape, dtype and block
size. Quantised maxima are bytes: codes of ``nested_quant_map``, times ``nested_absmax`` of 256 of
them, plus an offset. GPTQModel writes the same with ``_`` for the last dot. 8 bits: ``P.weight``
int8 with ``P.SCB``, the greatest magnitude of each row.

Source: bitsandbytes 0.50.2, ``functional.py`` (``QuantState``), ``backends/default/ops.py``
(``_dequantize_4bit_compute``), ``_ops.py`` (``int8_vectorwise_dequant``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.form import canonical
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Codes, QuantisedWeight
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_BESIDE = re.compile(r"\.weight[._](quant_state\.\w+|absmax)$")
_KINDS = ("nf4", "fp4")
_OPTIONAL = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_LONGEST_STATE = 65536
_NESTED = 256
_INT8 = 7.874015718698502e-3
"""What a row's greatest magnitude is multiplied with: 1 / 127, as the library has it."""


@dataclass(frozen=True)
class _State:
    """What the JSON beside a weight says."""

    pieces: Pieces
    dot: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    block: int
    nested_block: int
    offset: float

    @property
    def blocks(self) -> int:
        return -(-prod(self.shape) // self.block)

    def ending(self, name: str) -> str:
        return f".weight{self.dot}{name}"


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    for dot in (".", "_"):
        states = [f".weight{dot}quant_state.bitsandbytes__{kind}" for kind in _KINDS]
        optional = tuple(f".weight{dot}{name}" for name in _OPTIONAL)
        for pieces in pieces_of(checkpoint, ".weight", (), (*optional, *states)):
            for kind, ending in zip(_KINDS, states, strict=True):
                if ending in pieces:
                    yield _four_bits(_state(pieces, dot, kind, ending))
    for pieces in pieces_of(checkpoint, ".weight", (), (".SCB", ".weight_format"), ("int8",)):
        if ".SCB" in pieces:
            yield _eight_bits(pieces)


# --- 4 bits ---------------------------------------------------------------------------------------


def _state(pieces: Pieces, dot: str, kind: str, ending: str) -> _State:
    """Read and check the JSON beside a weight, and that its tensors are as it says.

    Raises:
        CheckpointError: naming what cannot be.
    """
    stored = pieces[ending]
    if stored.dtype != "uint8" or stored.bytes > _LONGEST_STATE:
        raise pieces.unlike(ending, "JSON in uint8")
    try:
        found = json.loads(bytes(pieces.read(ending).tolist()).decode("utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__}, not an object")
        shape, block = found["shape"], found["blocksize"]
        state = _State(
            pieces, dot, kind, tuple(shape), found["dtype"], block,
            found.get("nested_blocksize", _NESTED), found.get("nested_offset", 0.0),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{stored.file} stores {stored.name!r}, which is not the JSON of a 4-bit weight "
            f"({type(error).__name__}: {error}); download or save it again"
        ) from error
    counts = [*state.shape, block, state.nested_block]
    if (
        len(state.shape) != 2
        or not all(type(count) is int and count > 0 for count in counts)
        or state.dtype not in FLOATS
        or type(state.offset) not in (int, float)
        or not math.isfinite(state.offset)
    ):
        raise CheckpointError(
            f"{stored.file} stores {stored.name!r} with a shape of {shape}, a block size of "
            f"{block}, a dtype of {state.dtype!r} and an offset of {state.offset}, which no 4-bit "
            "weight has; download or save it again"
        )
    _check(state)
    return state


def _check(state: _State) -> None:
    pieces, absmax = state.pieces, state.ending("absmax")
    if pieces.codes.bytes != -(-prod(state.shape) // 2):
        raise pieces.unlike(".weight", f"{-(-prod(state.shape) // 2)} bytes of a {state.shape}")
    for name in ("absmax", "quant_map"):
        if state.ending(name) not in pieces:
            raise pieces.refusal(f"there is no {state.ending(name)!r} beside it; save it again")
    pieces.expect(absmax, ("float32", "uint8"), (state.blocks,))
    pieces.expect(state.ending("quant_map"), ("float32",), (16,))
    if pieces[absmax].dtype == "uint8":
        for name, shape in (
            ("nested_absmax", (-(-state.blocks // state.nested_block),)),
            ("nested_quant_map", (256,)),
        ):
            if state.ending(name) not in pieces:
                raise pieces.refusal(f"there is no {state.ending(name)!r} beside it; save it again")
            pieces.expect(state.ending(name), ("float32",), shape)


def _four_bits(state: _State) -> QuantisedWeight:
    nested = ":dq" if state.pieces[state.ending("absmax")].dtype == "uint8" else ""
    text = f"{state.kind}-g{state.block}{nested}"
    return QuantisedWeight(
        name=f"{state.pieces.prefix}.weight",
        shape=state.shape,
        dtype=state.dtype,
        layout=READER.name,
        form=canonical(text, text),
        pieces=state.pieces.names,
        bits=state.pieces.bits,
        load=partial(_Blocks, state),
    )


class _Blocks:
    """Codes of a flattened weight, and the maxima of its blocks in float32."""

    def __init__(self, state: _State) -> None:
        import torch

        def read(name: str) -> Tensor:
            return state.pieces.read(state.ending(name))

        self._state = state
        self._bytes = state.pieces.read(".weight").reshape(-1).view(torch.uint8)
        self._table = read("quant_map")
        maxima = read("absmax")
        if maxima.dtype == torch.uint8:
            each = read("nested_absmax").repeat_interleave(state.nested_block)[: len(maxima)]
            maxima = read("nested_quant_map")[maxima.int()] * each + state.offset
        self._maxima = maxima

    def _codes(self, first: int, last: int) -> Tensor:
        """Codes of the elements of some rows."""
        import torch

        width = self._state.shape[1]
        begin, end = first * width, last * width
        some = self._bytes[begin // 2 : -(-end // 2)]
        codes = torch.stack([some >> 4, some & 15], dim=-1).flatten()
        return codes[begin % 2 :][: end - begin]

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        import torch

        state, width = self._state, self._state.shape[1]
        begin, end = first * width, last * width
        values = self._table[self._codes(first, last).int()]
        if begin % state.block == 0 and (end - begin) % state.block == 0:
            maxima = self._maxima[begin // state.block : end // state.block]
            values.view(-1, state.block).mul_(maxima[:, None])
        else:
            values.mul_(self._maxima[torch.arange(begin, end) // state.block])
        return values.view(last - first, width).to(getattr(torch, state.dtype))

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        width, block = self._state.shape[1], self._state.block
        maxima = self._maxima[first * width // block : -(-last * width // block)]
        return Codes(self._codes(first, last).view(last - first, width), 16, maxima)


# --- 8 bits ---------------------------------------------------------------------------------------


def _eight_bits(pieces: Pieces) -> QuantisedWeight:
    pieces.expect(".weight", ("int8",))
    if len(pieces.codes.shape) != 2:
        raise pieces.unlike(".weight", "int8 [out, in]")
    out = pieces.codes.shape[0]
    pieces.expect(".SCB", FLOATS, (out,), (out, 1))
    if ".weight_format" in pieces and pieces.read(".weight_format").flatten()[:1].any():
        raise pieces.refusal(
            "its rows are in an order of a GPU, which is not read: save it with a newer "
            "bitsandbytes"
        )
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=pieces.codes.shape,
        dtype="float32",
        layout=READER.name,
        form=canonical("int8", "int8"),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_Rows, pieces),
    )


class _Rows:
    """Codes of rows, and the greatest magnitude of each."""

    def __init__(self, pieces: Pieces) -> None:
        import torch

        self._codes = pieces.read(".weight")
        self._maxima = pieces.read(".SCB").to(torch.float32).reshape(-1, 1)

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        import torch

        codes = self._codes[first:last].to(torch.float32)
        return codes.mul_(self._maxima[first:last]).mul_(_INT8)

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`."""
        import torch

        codes = self._codes[first:last].view(torch.uint8) ^ 128
        return Codes(codes, 256, self._maxima[first:last] * _INT8)


READER = Reader(
    name="bitsandbytes",
    recognises=lambda _, tensor: (
        ".weight" in tensor.name
        and _BESIDE.search(tensor.name) is not None
        and "float" not in tensor.dtype
    ),
    methods=("bitsandbytes",),
    weights=_weights,
)
