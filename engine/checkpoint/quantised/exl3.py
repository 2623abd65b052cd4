"""EXL3: ``P.trellis``, a path through a codebook for each tile, and scales of inputs and outputs.

``trellis`` is ``[in / 16, out / 16, 16 · K]`` in int16, of K bits a weight; ``P.mcg`` or ``P.mul1``
beside it says which codebook. The weights of tiles are rotated back along both sides, in blocks of
128, and multiplied by ``suh`` of the inputs and ``svh`` of the outputs, in float16; older files
store the signs alone, 16 in a word of ``su`` and ``sv``.

What tiles decode to is the tool's, bit for bit; a rotation adds 128 numbers in float32, and the
tool's order depends on the machine: a weight may differ in the last bit of float16.

Source: exllamav3 1.6.5, ``modules/quant/exl3.py`` (``get_weight_tensor``); see
`engine.checkpoint.packed.trellis`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.pieces import Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Codes, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint.packed.trellis import Codebook

_CODES = re.compile(r"\.trellis$")
_BLOCK = 128
_HALVES = (1, 2, 3)
"""Whole bits that half a bit may be added to, with the codebook ``mul1``."""
_SIGNS = ((".suh", ".su"), (".svh", ".sv"))


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    optional = (*(name for pair in _SIGNS for name in pair), ".mcg", ".mul1")
    for pieces in pieces_of(checkpoint, ".trellis", (), optional):
        yield _weight(pieces)


def _weight(pieces: Pieces) -> QuantisedWeight:
    pieces.expect(".trellis", ("int16",))
    if len(pieces.codes.shape) != 3:
        raise pieces.unlike(".trellis", "[in / 16, out / 16, 16 K]")
    inputs, out = (16 * count for count in pieces.codes.shape[:2])
    if not inputs or not out or inputs % _BLOCK or out % _BLOCK:
        raise pieces.refusal(f"{[out, inputs]} weights are no blocks of 128; save it again")
    bits = _bits(pieces)
    for (scales, signs), size in zip(_SIGNS, (inputs, out), strict=True):
        if scales in pieces:
            pieces.expect(scales, ("float16",), (size,))
        elif signs in pieces:
            pieces.expect(signs, ("int16",), (size // 16,))
        else:
            raise pieces.refusal(f"there is no {scales[1:]!r} beside it; download or save it again")
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(out, inputs),
        dtype="float16",
        layout=READER.name,
        form=f"exl3-{bits}",
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_Loaded, pieces),
    )


def _bits(pieces: Pieces) -> str:
    """Bits of a weight, in words."""
    if ".mcg" in pieces and ".mul1" in pieces:
        raise pieces.refusal("there are two codebooks beside it, 'mcg' and 'mul1'; save it again")
    whole, half = divmod(pieces.codes.shape[2], 16)
    if half == 0 and 1 <= whole <= 8:
        return str(whole)
    if half == 8 and whole in _HALVES and ".mul1" in pieces:
        return f"{whole}.5"
    raise pieces.unlike(".trellis", "16 K words a tile, of 1 to 8 bits, or 1.5 to 3.5 with 'mul1'")


class _Loaded:
    """The tiles of a weight; those of 128 outputs are decoded at a time."""

    def __init__(self, pieces: Pieces) -> None:
        self._tiles = pieces.read(".trellis")
        self._codebook: Codebook = (
            "mcg" if ".mcg" in pieces else "mul1" if ".mul1" in pieces else "3inst"
        )
        self._inputs, self._outputs = (_scales(pieces, *pair) for pair in _SIGNS)
        self._block: tuple[int, Tensor] | None = None

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        import torch

        found = []
        for block in range(first // _BLOCK, -(-last // _BLOCK)):
            start = block * _BLOCK
            whole = self._of_block(block)
            found.append(whole[max(first - start, 0) : last - start])
        return torch.cat(found) if len(found) > 1 else found[0]

    def _of_block(self, block: int) -> Tensor:
        """Rows of 128 outputs, ``[128, in]``."""
        import torch

        from engine.checkpoint.packed.trellis import TILE, decoded, rotated

        if self._block is not None and self._block[0] == block:
            return self._block[1]
        some = self._tiles[:, block * _BLOCK // TILE : (block + 1) * _BLOCK // TILE]
        down, across, length = some.shape
        tiles = decoded(some.reshape(-1, length), self._codebook)
        tiles = tiles.view(down, across, TILE, TILE).transpose(1, 2).reshape(-1, _BLOCK)
        half = rotated(tiles.view(-1, _BLOCK, _BLOCK)).view(-1, _BLOCK).to(torch.float16)
        half.mul_(self._inputs[:, None])
        whole = rotated(half.T.contiguous()).to(torch.float16)
        whole.mul_(self._outputs[block * _BLOCK : (block + 1) * _BLOCK, None])
        self._block = block, whole
        return self._block[1]

    def codes(self, first: int, last: int) -> Codes:
        """See `engine.checkpoint.weight.Loaded`: a path has no codes of single weights."""
        import torch

        scales = self._outputs[first:last].float()
        if first == 0:
            scales = torch.cat([self._inputs.float(), scales])
        return Codes(self._tiles[:0], 0, scales)


def _scales(pieces: Pieces, scales: str, signs: str) -> Tensor:
    """The scales of one side, float16; of signs alone 1, or -1 where a bit is set."""
    import torch

    if scales in pieces:
        return pieces.read(scales)
    words = pieces.read(signs).int() & 0xFFFF
    bits = (words[:, None] >> torch.arange(16, dtype=torch.int32)) & 1
    return (1.0 - 2.0 * bits.flatten()).to(torch.float16)


READER = Reader(
    name="exl3",
    recognises=lambda _, tensor: _CODES.search(tensor.name) is not None,
    methods=("exl3",),
    weights=_weights,
)
