"""AWQ: ``P.qweight``, ``P.qzeros`` and ``P.scales`` in the shapes of one of its kernels, 4 bits.

| version | ``qweight`` | ``qzeros`` | ``scales`` |
|---|---|---|---|
| GEMM | int32 ``[in, out / 8]`` | int32 ``[groups, out / 8]`` | ``[groups, out]`` |
| GEMV | int32 ``[out, in / 8]`` | int32 ``[out, width]`` | ``[out, 8 · width]`` |
| GEMV_FAST | int16 ``[out / 4, in]`` | ``[8 · width, out]``: −scale · zero | ``[8 · width, out]`` |

GEMM packs column ``0 2 4 6 1 3 5 7`` of every eight, GEMV in order; GEMV_FAST reorders every 32
codes of a row and interleaves four rows. The width is rounded up, and filled with zeros. Zero
points are stored as they are. Scales of AWQ for input channels are in the norms and layers before.

Source: AutoAWQ 0.2.9, ``utils/packing_utils.py`` and ``modules/linear``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import declared_config, whole_number
from engine.checkpoint.packed.form import integer_form
from engine.checkpoint.packed.pieces import FLOATS, HALVES, Pieces, pieces_of
from engine.checkpoint.quantised.gptq import is_gptq
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint.packed.four_bits import Array, FourBits

_SIZES = (128, 64, 32, 16)


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    config = declared_config(checkpoint)
    for pieces in pieces_of(checkpoint, ".qweight", (".qzeros", ".scales"), (".g_idx",)):
        if not is_gptq(pieces, config) and (found := _weight(pieces, config)) is not None:
            yield found


def _weight(pieces: Pieces, config: dict[str, Any]) -> QuantisedWeight | None:
    codes, zeros, scales = (pieces[name].shape for name in (".qweight", ".qzeros", ".scales"))
    if not len(codes) == len(zeros) == len(scales) == 2:
        return None
    words = pieces.codes.dtype
    load: Callable[..., Loaded]
    packed: Callable[..., FourBits] | None = None
    if words == "int32" and zeros[1] == codes[1] and scales == (zeros[0], 8 * codes[1]):
        out, inputs, load = 8 * codes[1], codes[0], _load_gemm
        packed = _packed_gemm
    elif words == "int32" and zeros[0] == codes[0] and scales == (codes[0], 8 * zeros[1]):
        out, inputs, load = codes[0], 8 * codes[1], _load_gemv
        packed = _packed_gemv
    elif words == "int16" and zeros == scales and scales[1] == 4 * codes[0]:
        out, inputs, load = 4 * codes[0], codes[1], _load_fast
    else:
        return None
    pieces.expect(".scales", FLOATS)
    pieces.expect(".qzeros", FLOATS if load is _load_fast else ("int32",))
    groups = scales[0] if load is _load_gemm else None
    size = _size(pieces, config, inputs, groups, scales[1] if load is _load_gemv else scales[0])
    symmetric = config.get("zero_point") is False or config.get("sym") is True
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(out, inputs),
        dtype=pieces[".scales"].dtype,
        layout=READER.name,
        form=integer_form(4, None if size == inputs else size, symmetric=symmetric),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(load, pieces, out, inputs, size),
        packed=partial(packed, pieces, inputs, size) if packed and _is_half(pieces) else None,
    )


def _size(
    pieces: Pieces, config: dict[str, Any], inputs: int, groups: int | None, width: int
) -> int:
    """Inputs that share a scale.

    Args:
        pieces: of the weight.
        config: which may say it.
        inputs: of the weight.
        groups: of a row, where the shapes tell.
        width: of the scales, where that is rounded up.
    """
    if groups is not None:
        if not groups or inputs % groups:
            raise pieces.unlike(".scales", f"scales of groups that divide {inputs} inputs")
        return inputs // groups
    named = whole_number(config, "group_size") or whole_number(config, "q_group_size")
    named = inputs if named == -1 else named
    for size in (named, *_SIZES):
        if size and size > 0 and inputs % size == 0 and _width(inputs // size, size) == width:
            return size
    raise pieces.unlike(".scales", f"as wide as the groups of {inputs} inputs")


def _width(groups: int, size: int) -> int:
    multiple = 1 if size >= 128 else 2 if size == 64 else 4
    words = -(-groups // 8)
    return 8 * multiple * -(-words // multiple)


def _is_half(pieces: Pieces) -> bool:
    return pieces[".scales"].dtype in HALVES


def _load_gemm(pieces: Pieces, out: int, inputs: int, size: int) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    words = pieces.read(".qweight")

    @cache
    def turned() -> Tensor:
        # A row of bytes holds two rows of the weight.
        return words.view(torch.uint8).T.contiguous()

    def unpack(first: int, last: int) -> Tensor:
        return _in_order(turned()[first // 8 * 4 : -(-last // 8) * 4])[first % 8 :][: last - first]

    scales = pieces.read(".scales").T.contiguous()
    return Grid(
        unpack=unpack,
        packed=_packed_gemm(pieces, inputs, size, words.numpy()) if _is_half(pieces) else None,
        scales=scales,
        dtype=scales.dtype,
        levels=16,
        zeros=_in_order(pieces.read(".qzeros").view(torch.uint8).T.contiguous()),
    )


def _packed_gemm(pieces: Pieces, inputs: int, size: int, words: Array | None = None) -> FourBits:
    """The weight as a compiled loop takes it; ``words`` are its codes, if they are read already."""
    import numpy as np

    from engine.checkpoint.packed.four_bits import four_bits, nibbles
    from engine.checkpoint.packed.orders import GEMM_ORDER, TURNED

    return four_bits(
        pieces.array(".qweight") if words is None else words,
        TURNED,
        (pieces[".scales"].shape[1], inputs),
        pieces.array(".scales").T,
        pieces[".scales"].dtype,
        np.arange(inputs) // size,
        nibbles(pieces.array(".qzeros"), GEMM_ORDER).T,
    )


def _in_order(turned: Tensor) -> Tensor:
    """Codes ``[8 · words, in]`` of bytes ``[4 · words, in]``."""
    import torch

    from engine.checkpoint.packed.orders import GEMM_ORDER

    whole = turned.view(-1, 4, turned.shape[1])
    codes = torch.empty(len(whole), 8, turned.shape[1], dtype=torch.uint8)
    for byte in range(4):
        torch.bitwise_and(whole[:, byte], 15, out=codes[:, GEMM_ORDER[2 * byte]])
        codes[:, GEMM_ORDER[2 * byte + 1]] = whole[:, byte] >> 4
    return codes.flatten(0, 1)


def _load_gemv(pieces: Pieces, out: int, inputs: int, size: int) -> Loaded:
    from engine.checkpoint.packed.grid import Grid
    from engine.checkpoint.packed.unpacking import unpacked

    words, groups = pieces.read(".qweight"), inputs // size
    scales = pieces.read(".scales")[:, :groups].contiguous()
    return Grid(
        unpack=lambda first, last: unpacked(words[first:last], 4, inputs),
        packed=_packed_gemv(pieces, inputs, size, words.numpy()) if _is_half(pieces) else None,
        scales=scales,
        dtype=scales.dtype,
        levels=16,
        zeros=unpacked(pieces.read(".qzeros"), 4, groups),
    )


def _packed_gemv(pieces: Pieces, inputs: int, size: int, words: Array | None = None) -> FourBits:
    """As `_packed_gemm`."""
    import numpy as np

    from engine.checkpoint.packed.four_bits import four_bits, nibbles
    from engine.checkpoint.packed.orders import ACROSS

    groups = inputs // size
    return four_bits(
        pieces.array(".qweight") if words is None else words,
        ACROSS,
        (pieces.codes.shape[0], inputs),
        pieces.array(".scales")[:, :groups],
        pieces[".scales"].dtype,
        np.arange(inputs) // size,
        nibbles(pieces.array(".qzeros"))[:, :groups],
    )


def _load_fast(pieces: Pieces, out: int, inputs: int, size: int) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    if inputs % 64:
        raise pieces.unlike(".qweight", "rows of a multiple of 64 inputs")
    stored = pieces.read(".qweight")
    # 4 codes of a word are of one row: 64 words hold 64 columns of 4 rows, one row after another.
    groups = inputs // size
    scales = pieces.read(".scales").T[:, :groups].contiguous()
    offsets = pieces.read(".qzeros").T[:, :groups].contiguous()

    def unpack(first: int, last: int) -> Tensor:
        words = stored[first // 4 : -(-last // 4)]
        nibbles = torch.stack([(words >> (4 * place)) & 15 for place in range(4)], dim=-1)
        # [rows / 4, in / 64, 64, 4] as written is [rows / 4, in / 64, 4 rows, 64 codes].
        rows = nibbles.to(torch.uint8).view(len(words), inputs // 64, 4, 64).transpose(1, 2)
        codes = rows.reshape(-1, inputs // 32, 4, 2, 4).transpose(-1, -2)  # 0 2 4 6 1 3 5 7
        codes = codes.reshape(-1, inputs // 32, 4, 4, 2).transpose(2, 3)  # 4 x 4 pairs, turned
        return codes.reshape(-1, inputs)[first % 4 :][: last - first]

    return Grid(unpack=unpack, scales=scales, dtype=scales.dtype, levels=16, offsets=offsets)


READER = Reader(
    name="awq",
    recognises=lambda _, tensor: tensor.name.endswith(".qweight") and tensor.dtype == "int16",
    methods=("awq", "auto-round"),
    weights=_weights,
)
