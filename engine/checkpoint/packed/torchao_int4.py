"""Weights of torchao in 4-bit integers: plain, in words, and in the tiles of tinygemm.

- ``Int4Tensor``: signed codes, two a byte, the first in the low half; ``scale`` and ``zero_point``
  ``[in / group, out]``: ``code · scale + zero_point``. (Of MSLK, ``int4_row_quantize_zp``.)
- ``Int4PlainInt32Tensor``, as written on XPU: codes from 0 on, eight a word, the first in the
  lowest bits; whole zero points: ``(code - zero_point) · scale``.
- ``Int4TilePackedTo4dTensor``: ``[out / 8, in / 128, 32, 4]`` words of eight codes, in the order in
  which the lanes of a warp take them; ``scale_and_zero [in / group, out, 2]``:
  ``(code - 8) · scale + zero``. Padded to 8 outputs and 1024 inputs.

Source: torchao 0.18.0, ``quantization/quantize_/workflows/int4``; the tiles are those of
``_convert_weight_to_int4pack`` of torch on CUDA.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from engine.checkpoint.packed.form import integer_form
from engine.checkpoint.packed.pieces import FLOATS
from engine.checkpoint.packed.torchao_described import CODES, SCALE, SCALE_AND_ZERO, ZERO, Described
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

_LANES, _WORDS = 32, 4
_TILE = (8, 128)
"""Outputs and inputs of a tile of ``Int4TilePackedTo4dTensor``: eight tiles of tinygemm."""
_PLACES = (0, 8, 16, 24, 1, 9, 17, 25)
"""Inputs of a word's codes, from its lowest bits on, after twice the lane modulo 4."""


def int4(found: Described, layout: str) -> QuantisedWeight:
    """A weight in one of these kinds.

    Raises:
        CheckpointError: a piece is missing or of another dtype or shape; names it.
    """
    pieces = found.pieces
    tiled = found.kind == "Int4TilePackedTo4dTensor"
    words = found.kind == "Int4PlainInt32Tensor"
    shape = _tiled_shape(found) if tiled else _plain_shape(found, words=words)
    group = found.group()
    groups = -(-shape[1] // group)
    if tiled:
        padded = (pieces.codes.shape[1] * _TILE[1] // group, pieces.codes.shape[0] * _TILE[0])
        pieces.expect(SCALE_AND_ZERO, FLOATS, (*padded, 2), (padded[0], shape[0], 2))
    else:
        for ending in (SCALE, ZERO):
            if ending not in pieces:
                raise pieces.refusal(f"there is no {ending[9:]!r} beside it; save it again")
        pieces.expect(SCALE, FLOATS, (groups, shape[0]))
        pieces.expect(ZERO, ("int8",) if words else FLOATS, (groups, shape[0]))
    dtype = pieces[SCALE_AND_ZERO if tiled else SCALE].dtype
    load = _load_tiles if tiled else partial(_load_plain, words=words)
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=shape,
        dtype=dtype,
        layout=layout,
        form=integer_form(4, None if groups == 1 else group, symmetric=False),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(load, found, shape, group),
    )


def _plain_shape(found: Described, *, words: bool) -> tuple[int, int]:
    pieces = found.pieces
    pieces.expect(CODES, ("int32",) if words else ("int8", "uint8"))
    if len(pieces.codes.shape) != 2:
        raise found.refusal("it is of more than two dimensions, which is not read")
    out, packed = pieces.codes.shape
    return out, packed * (8 if words else 2)


def _tiled_shape(found: Described) -> tuple[int, int]:
    pieces, shape = found.pieces, found.sizes("shape")
    pieces.expect(CODES, ("int32",))
    tiles = pieces.codes.shape
    fits = (
        len(shape) == 2
        and len(tiles) == 4
        and tiles[2:] == (_LANES, _WORDS)
        and shape[0] <= tiles[0] * _TILE[0]
        and shape[1] <= tiles[1] * _TILE[1]
    )
    if not fits:
        raise pieces.unlike(CODES, f"[out / 8, in / 128, 32, 4] words of a weight of {list(shape)}")
    return shape[0], shape[1]


def _load_plain(found: Described, shape: tuple[int, int], group: int, *, words: bool) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid
    from engine.checkpoint.packed.unpacking import unpacked

    pieces, inputs = found.pieces, shape[1]
    codes, scales = pieces.read(CODES), pieces.read(SCALE).T.contiguous()
    zeros = pieces.read(ZERO).T.contiguous()
    signed = 0 if words else 8
    return Grid(
        # From codes around 0 to codes from 0 on.
        unpack=lambda a, b: unpacked(codes[a:b], 4, inputs) ^ signed,
        scales=scales,
        dtype=scales.dtype,
        levels=16,
        zeros=zeros if words else None,
        middle=signed,
        offsets=None if words else zeros,
        index=_index(torch.arange(inputs) // group, scales.shape[1]),
    )


def _load_tiles(found: Described, shape: tuple[int, int], group: int) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    out, inputs = shape
    words, groups = found.pieces.read(CODES), -(-inputs // group)
    both = found.pieces.read(SCALE_AND_ZERO)[:groups, :out].transpose(0, 1)
    order = _order()

    def unpack(first: int, last: int) -> Tensor:
        some = words[first // _TILE[0] : -(-last // _TILE[0])].flatten(2)
        codes = torch.stack([(some >> (4 * place)) & 15 for place in range(8)], dim=-1)
        tiles = torch.empty(*some.shape[:2], _TILE[0] * _TILE[1], dtype=torch.uint8)
        tiles[:, :, order] = codes.flatten(2).to(torch.uint8)
        rows = tiles.view(*some.shape[:2], *_TILE).transpose(1, 2).flatten(2).flatten(0, 1)
        return rows[first % _TILE[0] :][: last - first, :inputs]

    return Grid(
        unpack=unpack,
        scales=both[..., 0].contiguous(),
        dtype=both.dtype,
        levels=16,
        middle=8,
        offsets=both[..., 1].contiguous(),
        index=_index(torch.arange(inputs) // group, groups),
    )


def _order() -> Tensor:
    """The place in a tile, ``[8, 128]``, of each of its codes in the order of words."""
    import torch

    lane = torch.arange(_LANES)[:, None, None]
    word = torch.arange(_WORDS)[None, :, None]
    inputs = 32 * word + 2 * (lane % 4) + torch.tensor(_PLACES)
    return (lane // 4 * _TILE[1] + inputs).flatten()


def _index(index: Tensor, groups: int) -> Tensor | None:
    from engine.checkpoint.packed.grid import regular

    return regular(index, groups)
