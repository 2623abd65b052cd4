"""torchao: ``P._weight_qdata`` with ``P._weight_scale``, described in the file's metadata.

``Int8Tensor`` and ``IntxUnpackedToInt8Tensor``: a code in int8, less the zero point, times the
scale of its block; ``Float8Tensor``: fp8 times the scale of its block. Other kinds, whose codes are
in the order of a kernel, are named and refused. Types and dtypes of the metadata are compared with
what they may be; torchao looks dtypes up among all names of torch.

Source: torchao 0.18.0, ``prototype/safetensors``, ``quantization/quantize_/workflows``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo, read_metadata
from engine.checkpoint.packed.declared import model_dtype
from engine.checkpoint.packed.form import float8_form, integer_form
from engine.checkpoint.packed.pieces import FLOATS, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

_CODES = re.compile(r"\._weight_qdata$")
_INTEGERS, _FLOAT = ("Int8Tensor", "IntxUnpackedToInt8Tensor"), "Float8Tensor"
_OPTIONAL = ("zero_point", "act_quant_scale", "act_quant_zero_point", "act_pre_scale")
_BITS = re.compile(r"int([1-8])")


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    metadata: dict[str, str] | None = None
    optional = tuple(f"._weight_{name}" for name in _OPTIONAL)
    for pieces in pieces_of(checkpoint, "._weight_qdata", ("._weight_scale",), optional):
        if metadata is None:
            files = [] if checkpoint.pickled else checkpoint.files
            metadata = {k: v for file in files for k, v in read_metadata(file).items()}
        yield _weight(pieces, metadata.get(f"{pieces.prefix}.weight", ""))


def _weight(pieces: Pieces, text: str) -> QuantisedWeight:
    kind, about = _described(pieces, text)
    if kind not in (*_INTEGERS, _FLOAT):
        raise pieces.refusal(
            f"the file's metadata says that it is {kind!r}, which is not read; open the checkpoint "
            "it was made from"
        )
    if "._weight_act_pre_scale" in pieces:
        raise pieces.refusal(
            "its inputs are scaled first, which is not read; open the checkpoint it was made from"
        )
    shape, scale = pieces.codes.shape, pieces["._weight_scale"]
    pieces.expect("._weight_scale", FLOATS)
    pieces.expect(
        "._weight_qdata",
        ("int8",) if kind in _INTEGERS else ("float8_e4m3fn", "float8_e5m2"),
    )
    fits = len(shape) == len(scale.shape) == 2 and all(
        count and size % count == 0 for size, count in zip(shape, scale.shape, strict=True)
    )
    if not fits:
        raise pieces.unlike("._weight_scale", f"scales of blocks that divide {list(shape)}")
    if "._weight_zero_point" in pieces:
        floats = (*FLOATS, "int8", "int32", "int64")
        pieces.expect("._weight_zero_point", floats, scale.shape)
    rows, columns = (size // count for size, count in zip(shape, scale.shape, strict=True))
    dtype = _dtype(about.get("dtype")) or model_dtype(pieces.checkpoint)
    bits = _BITS.fullmatch(_dtype_text(about.get("target_dtype")) or "int8")
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=shape,
        dtype=dtype,
        layout=READER.name,
        form=_form(pieces.codes, int(bits[1]) if bits else 8, rows, columns),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load, pieces, dtype, rows, int(bits[1]) if bits else 8),
    )


def _described(pieces: Pieces, text: str) -> tuple[str, dict[str, Any]]:
    """The type of a weight and its settings, from the metadata."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    about = found.get("_data") if isinstance(found, dict) else None
    if not isinstance(about, dict):
        raise pieces.refusal("the file's metadata does not describe it; download or save it again")
    return str(found.get("_type")), about


def _dtype_text(value: object) -> str | None:
    found = value.get("_data") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _dtype(value: object) -> str | None:
    found = _dtype_text(value)
    return found if found in FLOATS else None


def _form(codes: TensorInfo, bits: int, rows: int, columns: int) -> str:
    shape = codes.shape
    whole = columns == shape[1]
    if codes.dtype != "int8":
        per = "tensor" if rows == shape[0] else "channel"
        return float8_form(codes.dtype, per if whole else f"block{columns}")
    group = columns if not whole else None if rows == 1 else 0
    return integer_form(bits, group, symmetric=None)


def _load(pieces: Pieces, dtype: str, rows: int, bits: int) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid

    codes, scales = pieces.read("._weight_qdata"), pieces.read("._weight_scale")
    integers = codes.dtype == torch.int8
    half = 1 << (bits - 1)
    if integers and codes.numel() and not -half <= int(codes.min()) <= int(codes.max()) < half:
        raise pieces.refusal(f"its codes are beyond {bits} bits; download or save it again")
    zeros = None
    if "._weight_zero_point" in pieces:
        zeros = pieces.read("._weight_zero_point").to(torch.float32).reshape(scales.shape) + half
    return Grid(
        # From codes around 0 to codes from 0 on.
        unpack=lambda a, b: (codes[a:b].short() + half) if integers else codes[a:b],
        scales=scales,
        dtype=getattr(torch, dtype),
        levels=1 << bits if integers else 0,
        zeros=zeros,
        middle=half if integers else 0,
        rows_each=rows,
    )


READER = Reader(
    name="torchao",
    recognises=lambda _, tensor: _CODES.search(tensor.name) is not None,
    methods=("torchao",),
    weights=_weights,
)
