"""MLX: ``P.weight`` in words of 32 bits, ``P.scales`` and ``P.biases``; experts one below another.

Codes run along the inputs as a stream of bits, the lowest first. ``affine``: code · scale + bias,
of 2, 3, 4, 5, 6 or 8 bits in groups; ``mxfp4`` and ``mxfp8``: a power of two for 32; ``nvfp4``: fp8
for 16. The config says which, for single modules too; the shapes must agree. ``metal`` of
transformers is ``affine`` with ``P.qbiases``.

Source: MLX 0.32, ``mlx/ops.cpp`` and ``backend/cpu/quantized.cpp``; ``mlx_lm/utils.py``;
transformers 5.23, ``integrations/metal_quantization.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import model_dtype, quantization_config, whole_number
from engine.checkpoint.packed.form import integer_form
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

_BITS, _SIZES = (4, 8, 2, 3, 5, 6), (64, 32, 128, 16)
_QBIASES = ".qbiases"
_FLOATS = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""Bits of a code and weights that share a scale."""


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    found = checkpoint.config.get("quantization")
    config = found if isinstance(found, dict) else quantization_config(checkpoint)
    beside = (".scales", ".biases", _QBIASES)
    for pieces in pieces_of(checkpoint, ".weight", (), beside, ("uint32",)):
        if ".scales" in pieces:
            yield _weight(pieces, config)


def _weight(pieces: Pieces, config: dict[str, Any]) -> QuantisedWeight:
    own = config.get(pieces.prefix)
    settings = {**config, **own} if isinstance(own, dict) else config
    mode = str(settings.get("mode", "affine"))
    if len(pieces.codes.shape) not in (2, 3) or not pieces.codes.elements:
        raise pieces.unlike(".weight", "[out, words] or [experts, out, words]")
    *rows, words = pieces.codes.shape
    if mode in _FLOATS:
        bits, size = _FLOATS[mode]
        pieces.expect(".scales", ("uint8",), (*rows, words * 32 // bits // size))
        dtype, form = model_dtype(pieces.checkpoint), mode
    elif mode == "affine":
        bits, size = _affine(pieces, settings)
        dtype, form = pieces[".scales"].dtype, integer_form(bits, size, symmetric=False)
    else:
        raise pieces.refusal(
            f"the config says mode {mode!r}, which is not known; open the checkpoint it was made "
            "from"
        )
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(*rows, words * 32 // bits),
        dtype=dtype,
        layout=READER.name,
        form=form,
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load, pieces, mode, bits, dtype),
    )


def _affine(pieces: Pieces, settings: dict[str, Any]) -> tuple[int, int]:
    """Bits and group size: as the config says if the shapes agree."""
    biases = _biases(pieces)
    if biases not in pieces:
        raise pieces.refusal("there are no 'biases' beside it; download or save it again")
    (*rows, words), groups = pieces.codes.shape, (0, *pieces[".scales"].shape)[-1]
    pieces.expect(".scales", FLOATS, (*rows, groups))
    pieces.expect(biases, FLOATS, (*rows, groups))
    named = whole_number(settings, "bits"), whole_number(settings, "group_size")
    fitting = [
        (bits, size) for bits in _BITS for size in _SIZES if groups * size * bits == 32 * words
    ]
    if named in fitting:
        return named
    raise pieces.refusal(
        f"{words} words and {groups} groups a row do not hold codes of {named[0]} bits in groups "
        f"of {named[1]}, as 'quantization' of config.json says; download or save it again"
    )


def _biases(pieces: Pieces) -> str:
    return _QBIASES if _QBIASES in pieces else ".biases"


def _load(pieces: Pieces, mode: str, bits: int, dtype: str) -> Loaded:
    import torch

    from engine.checkpoint.packed.floats import E2M1, powers_of_two
    from engine.checkpoint.packed.grid import Grid
    from engine.checkpoint.packed.unpacking import unpacked

    words = pieces.read(".weight").flatten(0, -2)
    scales = pieces.read(".scales").flatten(0, -2)
    inputs = words.shape[1] * 32 // bits
    numbers = mode == "mxfp8"
    if mode == "nvfp4":
        scales = scales.view(torch.float8_e4m3fn)
    elif mode in _FLOATS:
        scales = powers_of_two(scales)

    def unpack(first: int, last: int) -> torch.Tensor:
        codes = unpacked(words[first:last], bits, inputs)
        return codes.view(torch.float8_e4m3fn) if numbers else codes

    return Grid(
        unpack=unpack,
        scales=scales,
        dtype=getattr(torch, dtype),
        levels=0 if numbers else 1 << bits,
        table=E2M1 if bits == 4 and mode in _FLOATS else None,
        offsets=pieces.read(_biases(pieces)).flatten(0, -2) if mode == "affine" else None,
        rounded=mode == "affine" and _QBIASES not in pieces,
    )


READER = Reader(
    name="mlx",
    recognises=lambda _, tensor: tensor.dtype == "uint32" and tensor.name.endswith(".weight"),
    methods=("metal",),
    weights=_weights,
)
