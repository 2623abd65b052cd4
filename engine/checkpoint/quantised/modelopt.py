"""Model Optimizer: ``P.weight`` in 4 or 8 bits, ``P.weight_scale``, and what goes with them.

- NVFP4: two 4-bit numbers a byte along the inputs, the first in the low half; ``weight_scale`` fp8
  for 16, times ``weight_scale_2`` for all. (compressed-tensors divides by its own.)
- MXFP4: the same with a power of two for 32.
- INT4 AWQ: signed codes of two rows a byte, ``[out / 2, in]``, the even row in the low half.
- INT8: a scale for each row.

``pre_quant_scale`` multiplies the layer's inputs; here it multiplies the columns of the weight,
which is the same. fp8 is read by `engine.checkpoint.quantised.float8`, MXFP8 as that of
compressed-tensors is.

Source: nvidia-modelopt 0.47.0, ``torch/export/quant_utils.py``, ``quantization/qtensor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import model_dtype
from engine.checkpoint.packed.form import integer_form
from engine.checkpoint.packed.pieces import E8M0, FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint.packed.grid import Grid

_OPTIONAL = (".weight_scale", ".weight_scale_2", ".pre_quant_scale", ".input_scale")
_SVD = (".svdquant_lora_a", ".svdquant_lora_b", ".weight_quantizer._svdquant_lora_a")


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    optional = (*_OPTIONAL, *_SVD)
    for pieces in pieces_of(checkpoint, ".weight", (), optional, ("uint8", "int8")):
        if ".weight_scale" not in pieces or len(pieces.codes.shape) != 2:
            continue
        found = _layout(pieces)
        if found is None:
            continue
        if any(ending in pieces for ending in _SVD):
            raise pieces.refusal(
                "it is the rest of a product of two thin matrices (SVDQuant), which is not read; "
                "open the checkpoint it was made from"
            )
        form, shape, load = found
        yield QuantisedWeight(
            name=f"{pieces.prefix}.weight",
            shape=shape,
            dtype=model_dtype(checkpoint),
            layout=READER.name,
            form=form,
            pieces=pieces.names,
            bits=pieces.bits,
            load=partial(_load, pieces, shape, load),
        )


Make = Callable[[Pieces, tuple[int, int]], dict[str, Any]]


def _layout(pieces: Pieces) -> tuple[str, tuple[int, int], Make] | None:
    """The form of a weight, its shape, and how it is loaded; None if it is not of this tool."""
    (rows, columns), codes = pieces.codes.shape, pieces.codes.dtype
    scale = pieces[".weight_scale"]
    if codes == "int8" and len(scale.shape) == 1 and scale.shape == (rows,) and rows > 1:
        return integer_form(8, None, symmetric=True), (rows, columns), _eight_bits
    if codes != "uint8" or len(scale.shape) != 2:
        return None
    if ".weight_scale_2" in pieces:
        pieces.expect(".weight_scale", ("float8_e4m3fn",), (rows, -(-2 * columns // 16)))
        pieces.expect(".weight_scale_2", ("float32",), (), (1,))
        return "nvfp4", (rows, 2 * columns), _nvfp4
    if scale.dtype in E8M0:
        pieces.expect(".weight_scale", E8M0, (rows, -(-2 * columns // 32)))
        return "mxfp4", (rows, 2 * columns), _mxfp4
    groups = scale.shape[1]
    if scale.dtype in FLOATS and scale.shape[0] == 2 * rows and groups and columns % groups == 0:
        size = None if groups == 1 else columns // groups
        return integer_form(4, size, symmetric=True), (2 * rows, columns), _int4
    raise pieces.refusal(
        f"its scales {scale.dtype} {list(scale.shape)} are of no layout that is known; if they "
        "lack 'weight_scale_2', save it again, else open the checkpoint it was made from"
    )


def _nvfp4(pieces: Pieces, shape: tuple[int, int]) -> dict[str, Any]:
    import torch

    whole = pieces.read(".weight_scale_2").reshape(())
    scales = pieces.read(".weight_scale").to(torch.float32) * whole
    return _four_bit_floats(pieces, shape, scales, 16)


def _mxfp4(pieces: Pieces, shape: tuple[int, int]) -> dict[str, Any]:
    from engine.checkpoint.packed.floats import powers_of_two

    return _four_bit_floats(pieces, shape, powers_of_two(pieces.read(".weight_scale")), 32)


def _four_bit_floats(
    pieces: Pieces, shape: tuple[int, int], scales: Tensor, size: int
) -> dict[str, Any]:
    import torch

    from engine.checkpoint.packed.floats import E2M1
    from engine.checkpoint.packed.grid import regular
    from engine.checkpoint.packed.unpacking import unpacked

    codes, inputs = pieces.read(".weight"), shape[1]
    return {
        "unpack": lambda first, last: unpacked(codes[first:last], 4, inputs),
        "scales": scales,
        "levels": 16,
        "table": E2M1 + 0.0 if size == 16 else E2M1,  # the zero of NVFP4 has no sign
        "index": regular(torch.arange(inputs) // size, scales.shape[1]),
    }


def _int4(pieces: Pieces, shape: tuple[int, int]) -> dict[str, Any]:
    import torch

    stored = pieces.read(".weight")

    def unpack(first: int, last: int) -> Tensor:
        some = stored[first // 2 : -(-last // 2)]
        pairs = torch.stack([some & 15, some >> 4], dim=1).flatten(0, 1) ^ 8
        return pairs[first % 2 :][: last - first]

    return {"unpack": unpack, "scales": pieces.read(".weight_scale"), "levels": 16, "middle": 8}


def _eight_bits(pieces: Pieces, shape: tuple[int, int]) -> dict[str, Any]:
    import torch

    codes = pieces.read(".weight")
    return {
        "unpack": lambda first, last: codes[first:last].view(torch.uint8) ^ 128,
        "scales": pieces.read(".weight_scale")[:, None],
        "levels": 256,
        "middle": 128,
    }


def _load(pieces: Pieces, shape: tuple[int, int], make: Make) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    dtype = getattr(torch, model_dtype(pieces.checkpoint))
    found = Grid(dtype=dtype, **make(pieces, shape))
    if ".pre_quant_scale" not in pieces:
        return found
    columns = pieces.read(".pre_quant_scale").to(torch.float32).reshape(-1)
    if columns.shape != (shape[1],):
        raise pieces.unlike(".pre_quant_scale", f"[{shape[1]}], one for each input")
    return _Scaled(found, columns)


class _Scaled:
    """A weight whose columns are multiplied by what its inputs would be."""

    def __init__(self, grid: Grid, columns: Tensor) -> None:
        import torch

        self._grid, self._columns, self._dtype = grid, columns, grid.dtype
        self._exact = replace(grid, dtype=torch.float32)
        self.codes = grid.codes

    def rows(self, first: int, last: int) -> Tensor:
        """See `engine.checkpoint.weight.Loaded`."""
        return self._exact.rows(first, last).mul_(self._columns).to(self._dtype)


READER = Reader(
    name="modelopt",
    recognises=lambda _, tensor: tensor.name.endswith(".weight_scale_2"),
    methods=("modelopt",),
    weights=_weights,
    unused=(".input_scale",),
)
