"""GGUF types: blocks of bytes in the layout of ggml, which llama.cpp and others run.

A row is cut into blocks of 32 or 256 weights, each with its own scales. Which bytes a block has is
in `engine.quant.gguf_legacy`, `engine.quant.gguf_k`, `engine.quant.gguf_iq4` and
`engine.quant.gguf_iq`; here is what they share: rows are taken a few at a time, and ``Ŵ`` is read
back from the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.quant import gguf_compiled, gguf_iq, gguf_iq4, gguf_k, gguf_legacy
from engine.quant.arithmetic import Arithmetic, Levels
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.stored import Encoded, joined, write_rows

_TILE = {"cpu": 1 << 17, "cuda": 1 << 23}
"""Weights that a search works on at a time: what fits a cache, or fills a GPU."""


class _Type(NamedTuple):
    encode: Callable[[Tensor, Tensor | None], Tensor]
    """Blocks of float32 ``[rows, in]`` as bytes, given the importance of inputs or not."""
    decode: Callable[[Tensor], Tensor]
    halves: tuple[int, ...]
    """Where in a block the float16 numbers are."""


def _type(module: ModuleType, *halves: int, **which: Any) -> _Type:
    return _Type(partial(module.encode, **which), partial(module.decode, **which), halves)


TYPES = {
    "q4_0": _type(gguf_legacy, 0, bits=4, offset=False),
    "q4_1": _type(gguf_legacy, 0, 2, bits=4, offset=True),
    "q5_0": _type(gguf_legacy, 0, bits=5, offset=False),
    "q5_1": _type(gguf_legacy, 0, 2, bits=5, offset=True),
    "q8_0": _type(gguf_legacy, 0, bits=8, offset=False),
    "q2_k": _type(gguf_k, 80, 82, name="q2_k"),
    "q3_k": _type(gguf_k, 108, name="q3_k"),
    "q4_k": _type(gguf_k, 0, 2, name="q4_k"),
    "q5_k": _type(gguf_k, 0, 2, name="q5_k"),
    "q6_k": _type(gguf_k, 208, name="q6_k"),
    **{name: _type(gguf_iq4, 0, super_block=size) for name, size in gguf_iq4.SUPER_BLOCKS.items()},
    **{name: _type(gguf_iq, 0, name=name) for name in gguf_iq.KINDS},
}


@dataclass(frozen=True, eq=False)
class GgufBlocks:
    """A weight ``[out, in]`` or ``[experts, out, in]`` as a GGUF file holds it."""

    blocks: Tensor
    """uint8 ``[…, out, bytes of a row]``."""
    type: str
    """The name of the format: ``q4_k``."""
    block_bytes: int

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``, as the ``gguf`` package reads it, in float32 and cast last."""
        values = TYPES[self.type].decode(self.blocks.reshape(-1, self.block_bytes))
        return values.reshape(*self.blocks.shape[:-1], -1).to(dtype)


def quantize_gguf(
    weight: Tensor, fmt: Format, name: str = "weight", importance: Tensor | None = None
) -> GgufBlocks:
    """Quantise ``[out, in]`` or ``[experts, out, in]``, whose blocks divide ``in``.

    Values that are not finite count as 0.

    Args:
        weight: The weight; not modified.
        fmt: A GGUF type.
        name: The tensor, for error messages.
        importance: How much each input matters, ``[in]`` or ``[experts, in]``, not negative: what
            an importance matrix of llama.cpp has for a tensor. None weighs errors by the weights
            alone.

    Raises:
        FormatError: A scale of a block is too large for float16.
    """
    if importance is None or importance.dim() == 1:
        return joined(lambda matrix: _encoded(matrix, fmt, name, importance), weight.detach())
    of_expert = iter(importance)
    return joined(lambda matrix: _encoded(matrix, fmt, name, next(of_expert)), weight.detach())


def write_dequantized(
    weight: Tensor,
    fmt: Format,
    out: Tensor,
    name: str = "weight",
    importance: Tensor | None = None,
) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; raises as `quantize_gguf` does."""
    write_rows(weight, _encoded(weight, fmt, name, importance), out)


def _encoded(
    weight: Tensor, fmt: Format, name: str, importance: Tensor | None
) -> Encoded[GgufBlocks]:
    kind = TYPES[fmt.name]
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        blocks = gguf_compiled.encode(finite, fmt, importance=importance)
        if blocks is None:
            blocks = torch.cat([kind.encode(tile, importance) for tile in _tiles(finite)])
        for start in kind.halves:
            if not blocks[:, start : start + 2].contiguous().view(torch.float16).isfinite().all():
                raise FormatError(
                    f"{name}: a block needs a scale beyond float16, where those of {fmt} end, for "
                    f"weights up to {float(finite.abs().max()):.3g}: keep this layer"
                )
        stored = blocks.reshape(len(finite), -1)
        yield rows, broken, GgufBlocks(stored, fmt.name, blocks.shape[1])


def _tiles(matrix: Tensor) -> Iterator[Tensor]:
    step = max(1, _TILE.get(matrix.device.type, 1 << 20) // matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield matrix[start : start + step]


def quantize_gguf_weighed(weight: Tensor, fmt: Format, importance: Tensor, name: str) -> GgufBlocks:
    """`quantize_gguf` by the importance of inputs."""
    return quantize_gguf(weight, fmt, name, importance.to(weight.device, torch.float32))


def _levels(fmt: Format) -> Levels | None:
    """The scales of K-quants and ``iq4`` are searched for, weight by weight."""
    return Levels() if fmt.name in gguf_legacy.NAMES else None


ARITHMETIC = Arithmetic(
    quantize=lambda weight, fmt, _dtype, name: quantize_gguf(weight, fmt, name),
    write=lambda weight, fmt, _dtype, out, name: write_dequantized(weight, fmt, out, name),
    weighed=quantize_gguf_weighed,
    levels=_levels,
)
