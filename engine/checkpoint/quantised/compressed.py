"""compressed-tensors: ``P.weight_packed``, or ``P.weight`` in 8 bits, with ``P.weight_scale``.

- ``pack-quantized``: codes from 0 on in int32 words along the inputs, the first in the lowest bits.
  There are two packings under this name: up to 0.17.1 a word holds as many whole codes as fit, from
  0.18 on codes follow one another without a gap. For 3, 5, 6 and 7 bits the number of words tells.
- ``int-quantized``, ``naive-quantized``: int8, with a scale per tensor, channel, group or block.
- ``nvfp4-pack-quantized``, ``mxfp4-pack-quantized``: two 4-bit numbers a byte, the first in its low
  half; a scale per 16 in fp8, divided by a scale of the whole; or a power of two per 32.
  AutoRound's ``mxint4`` is stored as ``mxfp4``, but its codes stand for quarters.
- ``mxfp8-quantized``: fp8 with a power of two per 32; fp8 in groups, or in blocks other than 128.

Experts may be packed together, ``[experts, out, words]``: rows of one are below those of another.
Other fp8 is read by `engine.checkpoint.quantised.float8`. Source: compressed-tensors 0.17.1 and
0.19.0, ``compressors`` and ``quantization/lifecycle/forward.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import declared_config, matches, whole_number
from engine.checkpoint.packed.form import float8_form, integer_form
from engine.checkpoint.packed.pieces import E8M0, FLOATS, HALVES, Pieces, pieces_of
from engine.checkpoint.quantised.float8 import fits_as_float8
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from engine.checkpoint.packed.four_bits import Array, FourBits

_FIRST_DENSE = (0, 18)
_BYTES = ("int8", "uint8")
_BESIDE = (".weight_zero_point", ".weight_g_idx")
_UNUSED = (
    *("input_scale", "input_zero_point", "input_global_scale"),
    *("output_scale", "output_zero_point"),
)


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    config = declared_config(checkpoint)
    optional = (".weight_shape", *_BESIDE, ".weight_global_scale", *(f".{u}" for u in _UNUSED))
    for pieces in pieces_of(checkpoint, ".weight_packed", (".weight_scale",), optional):
        yield (_packed if pieces.codes.dtype == "int32" else _four_bits)(pieces, config)
    eight_bits = ("int8", "float8_e4m3fn", "float8_e5m2")
    for pieces in pieces_of(checkpoint, ".weight", (), (".weight_scale", *optional), eight_bits):
        if ".weight_scale" not in pieces or len(pieces.codes.shape) != 2:
            continue
        dtype, scale = pieces.codes.dtype, pieces[".weight_scale"]
        if (
            dtype == "int8"
            and scale.dtype in FLOATS
            and (len(scale.shape) == 2 or scale.elements == 1)
        ):
            yield _eight_bits(pieces, config)
        elif dtype == "float8_e4m3fn" and scale.dtype in E8M0:
            yield _mxfp8(pieces)
        elif (
            dtype.startswith("float8")
            and not fits_as_float8(checkpoint, pieces.codes, scale)
            and (_in_groups(pieces) or _declared_block(pieces, config))
        ):
            yield _eight_bits(pieces, config)


def _arguments(config: dict[str, Any], module: str) -> list[dict[str, Any]]:
    """The arguments of the groups of a config that may be of a module, the likeliest first."""
    groups = config.get("config_groups")
    named: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        targets = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            continue
        every = targets if isinstance(targets, list) else []
        by_name = [t for t in every if isinstance(t, str) and _names(t, module)]
        (named if by_name else others).append(weights)
    return named + others


def _names(target: str, module: str) -> bool:
    return matches(target[3:], module) if target.startswith("re:") else target == module


# --- integers in words ----------------------------------------------------------------------------


def _packed(pieces: Pieces, config: dict[str, Any]) -> QuantisedWeight:
    pieces.expect(".weight_scale", FLOATS)
    shape = _shape(pieces)
    out, inputs = prod(shape[:-1]), shape[-1]
    bits, dense = _packing(pieces, config, inputs)
    scale = _of_rows(pieces, shape)
    groups = _groups(pieces, scale, out)
    symmetric = ".weight_zero_point" not in pieces
    if not symmetric and pieces[".weight_zero_point"].dtype in _BYTES:
        _check_zeros(pieces)
    size = _size(pieces, config, inputs, groups)
    return QuantisedWeight(
        name=_name(pieces),
        shape=shape,
        dtype=pieces[".weight_scale"].dtype,
        layout=READER.name,
        form=_form(bits, scale, out, size, groups, symmetric=symmetric),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load_packed, pieces, shape, bits, dense, size),
        packed=partial(_packed_rows, pieces, shape, size) if _packs(pieces, bits) else None,
    )


def _check_zeros(pieces: Pieces) -> None:
    """Zero points that are not packed are as many as scales."""
    scale = pieces[".weight_scale"]
    if pieces[".weight_zero_point"].elements != scale.elements:
        raise pieces.unlike(".weight_zero_point", f"{list(scale.shape)}, as its scales")


def _name(pieces: Pieces) -> str:
    """Of the weight: experts that are stored together are a parameter of their module."""
    together = len(pieces.codes.shape) == 3
    return pieces.prefix if together else f"{pieces.prefix}.weight"


def _shape(pieces: Pieces) -> tuple[int, ...]:
    """The shape of the weight, which the words alone do not tell."""
    if ".weight_shape" not in pieces:
        raise pieces.refusal("there is no 'weight_shape' beside it; download or save it again")
    stored, packed = pieces[".weight_shape"], pieces.codes.shape
    pieces.expect(".weight_shape", ("int64", "int32"), (2,), (3,))
    found = tuple(map(int, pieces.signed(".weight_shape")))
    words = packed[-1]
    if len(found) != len(packed) or found[:-1] != packed[:-1]:
        fits = False
    else:
        fits = words <= found[-1] <= 32 * words
    if not fits:
        raise pieces.refusal(
            f"{stored.name!r} says {list(found)}, which {list(packed)} words cannot hold; "
            "download or save it again"
        )
    return found


def _of_rows(pieces: Pieces, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of scales if those of all experts are one below the other."""
    scale = pieces[".weight_scale"].shape
    if len(shape) == 2 or len(scale) < 2:
        return scale
    if len(scale) != 3 or scale[:2] != shape[:2]:
        raise pieces.unlike(".weight_scale", f"[{shape[0]}, {shape[1]}, groups]")
    return prod(scale[:2]), scale[2]


def _packing(pieces: Pieces, config: dict[str, Any], inputs: int) -> tuple[int, bool]:
    """Bits of a code, and whether codes follow one another without gaps."""
    words = pieces.codes.shape[-1]
    fitting = [
        (bits, dense)
        for bits in range(1, 9)
        for dense in (True, False)
        if words == (-(-inputs * bits // 32) if dense else -(-inputs // (32 // bits)))
    ]
    declared = [whole_number(each, "num_bits") for each in _arguments(config, pieces.prefix)]
    for bits in declared:
        ways = [dense for each, dense in fitting if each == bits]
        if bits is not None and ways:
            return bits, ways[0] if len(ways) == 1 else _is_dense(config)
    if len({bits for bits, _ in fitting}) != 1:
        said = " or ".join(str(bits) for bits in declared) or "no number of"
        raise pieces.refusal(
            f"{words} words a row of {inputs} do not hold codes of {said} bits, as the config "
            "says; download or save it again"
        )
    return fitting[0][0], fitting[0][1] if len(fitting) == 1 else _is_dense(config)


def _is_dense(config: dict[str, Any]) -> bool:
    """By the version that wrote it; both ways are the same where the bits divide 32."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", str(config.get("version", "")))
    return found is not None and (int(found[1]), int(found[2])) >= _FIRST_DENSE


def _groups(pieces: Pieces, shape: tuple[int, ...], out: int) -> int:
    """Groups of a row, from the shape of its scales."""
    if len(shape) == 2 and shape[0] in (1, out) and shape[1]:
        return shape[1]
    if shape in ((), (1,)):
        return 1
    raise pieces.unlike(".weight_scale", f"[{out}, groups], [{out}, 1] or [1]")


def _size(pieces: Pieces, config: dict[str, Any], inputs: int, groups: int) -> int:
    """Weights that share a scale; the last group of a row may be smaller."""
    for each in _arguments(config, pieces.prefix):
        named = whole_number(each, "group_size")
        if named is not None and named > 0 and -(-inputs // named) == groups:
            return named
    if inputs % groups:
        raise pieces.unlike(".weight_scale", f"scales of groups that divide {inputs} inputs")
    return inputs // groups


def _form(
    bits: int, scale: tuple[int, ...], out: int, size: int, groups: int, *, symmetric: bool
) -> str:
    whole = len(scale) < 2 or (scale[0] == 1 != out and groups == 1)
    group = 0 if whole else None if groups == 1 else size
    return integer_form(bits, group, symmetric=symmetric)


def _load_packed(
    pieces: Pieces, shape: tuple[int, ...], bits: int, dense: bool, size: int
) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid, regular
    from engine.checkpoint.packed.unpacking import unpacked

    out, inputs = prod(shape[:-1]), shape[-1]
    words = pieces.read(".weight_packed").flatten(0, -2)
    scales = pieces.read(".weight_scale")
    scales = scales.reshape(1, 1) if scales.ndim < 2 else scales.flatten(0, -2)
    half = 1 << (bits - 1)
    zeros = None
    if ".weight_zero_point" in pieces:
        stored = pieces.read(".weight_zero_point")
        if stored.dtype.itemsize == 1:
            zeros = stored.short().reshape(-1, scales.shape[1]) + half
        else:
            groups, rows = scales.shape[1], shape[-2]  # packed along the rows of each expert
            length = -(-rows * bits // 32) if dense else -(-rows // (32 // bits))
            _check_packed_zeros(pieces, (*shape[:-2], length, groups))
            wide = stored.transpose(-1, -2).reshape(-1, length)
            found = unpacked(wide, bits, rows, dense=dense).view(-1, groups, rows)
            zeros = found.transpose(1, 2).reshape(-1, groups)
    index = _index(pieces, inputs, size, scales.shape[1])
    return Grid(
        unpack=lambda first, last: unpacked(words[first:last], bits, inputs, dense=dense),
        packed=_packed_rows(pieces, shape, size, words.numpy()) if _packs(pieces, bits) else None,
        scales=scales,
        dtype=scales.dtype,
        levels=1 << bits,
        zeros=zeros,
        middle=half,
        index=regular(torch.from_numpy(index), scales.shape[1]),
        rows_each=1 if len(scales) == out else out,
    )


def _packs(pieces: Pieces, bits: int) -> bool:
    """Whether a compiled loop knows it."""
    return bits == 4 and pieces[".weight_scale"].dtype in HALVES


def _packed_rows(
    pieces: Pieces, shape: tuple[int, ...], size: int, words: Array | None = None
) -> FourBits:
    """The weight as a compiled loop takes it; ``words`` are its codes, if they are read already."""
    from engine.checkpoint.packed.four_bits import four_bits, nibbles
    from engine.checkpoint.packed.orders import ACROSS

    out, rows, inputs = prod(shape[:-1]), shape[-2], shape[-1]
    codes = pieces.array(".weight_packed") if words is None else words
    scales = pieces.array(".weight_scale")
    scales = scales.reshape(1, 1) if scales.ndim < 2 else scales.reshape(-1, scales.shape[-1])
    groups, zeros = scales.shape[1], None
    if ".weight_zero_point" in pieces:
        stored = pieces.signed(".weight_zero_point")
        if stored.itemsize == 1:
            zeros = stored.astype("int16").reshape(-1, groups) + 8
        else:  # packed along the rows of each expert
            _check_packed_zeros(pieces, (*shape[:-2], -(-rows // 8), groups))
            turned = nibbles(stored.swapaxes(-1, -2).copy())[..., :rows]
            zeros = turned.swapaxes(-1, -2).reshape(-1, groups)
    return four_bits(
        codes.reshape(out, -1),
        ACROSS,
        (out, inputs),
        scales,
        pieces[".weight_scale"].dtype,
        _index(pieces, inputs, size, groups),
        zeros,
        middle=8,
    )


def _check_packed_zeros(pieces: Pieces, wanted: tuple[int, ...]) -> None:
    if pieces[".weight_zero_point"].shape != wanted:
        raise pieces.unlike(".weight_zero_point", f"int32 {list(wanted)}")


def _index(pieces: Pieces, inputs: int, size: int, groups: int) -> Array:
    """The group of each column: as ``weight_g_idx`` says, unless it is unset (−1)."""
    import numpy as np

    if ".weight_g_idx" in pieces:
        stored = pieces.signed(".weight_g_idx").astype(np.int64)
        if not (stored == -1).any():
            pieces.check_index(".weight_g_idx", stored, inputs, groups)
            return stored
    return np.arange(inputs) // size


# --- 8 bits ---------------------------------------------------------------------------------------


def _eight_bits(pieces: Pieces, config: dict[str, Any]) -> QuantisedWeight:
    out, inputs = pieces.codes.shape
    scale = pieces[".weight_scale"]
    block = _block(pieces, config)
    shape = scale.shape if len(scale.shape) == 2 else (1, 1)
    groups = shape[1]
    if block is None:
        groups = _groups(pieces, scale.shape, out)
        size = _size(pieces, config, inputs, groups)
        rows_each = 1 if shape[0] == out else out
    else:
        rows_each, size = block
    integers = pieces.codes.dtype == "int8"
    symmetric = ".weight_zero_point" not in pieces
    if not symmetric:
        _check_zeros(pieces)
    if integers and block is None:
        form = _form(8, scale.shape, out, size, groups, symmetric=symmetric)
    else:
        per = f"block{size}" if block else f"g{size}"
        form = f"int8-{per}" if integers else float8_form(pieces.codes.dtype, per)
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(out, inputs),
        dtype=scale.dtype,
        layout=READER.name,
        form=form,
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load_eight_bits, pieces, size, rows_each),
    )


def _block(pieces: Pieces, config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, if that is a block; edges may be smaller."""
    (out, inputs), shape = pieces.codes.shape, pieces[".weight_scale"].shape
    if len(shape) != 2 or shape[0] in (1, out):
        return None
    if found := _declared_block(pieces, config):
        return found
    if shape[0] and shape[1] and out % shape[0] == 0 and inputs % shape[1] == 0:
        return out // shape[0], inputs // shape[1]
    raise pieces.unlike(".weight_scale", f"scales of blocks of a weight of {[out, inputs]}")


def _in_groups(pieces: Pieces) -> bool:
    (out, inputs), shape = pieces.codes.shape, pieces[".weight_scale"].shape
    floats = pieces[".weight_scale"].dtype in FLOATS
    return (
        floats and len(shape) == 2 and shape[0] == out and bool(shape[1] and not inputs % shape[1])
    )


def _declared_block(pieces: Pieces, config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block as the config says, if the scales are of that shape."""
    (out, inputs), shape = pieces.codes.shape, pieces[".weight_scale"].shape
    named = [each.get("block_structure") for each in _arguments(config, pieces.prefix)]
    named.append(config.get("weight_block_size"))
    for sizes in named:
        if isinstance(sizes, list) and len(sizes) == 2 and all(type(s) is int for s in sizes):
            rows, columns = sizes
            fits = rows > 0 < columns and shape == (-(-out // rows), -(-inputs // columns))
            if fits:
                return rows, columns
    return None


def _load_eight_bits(pieces: Pieces, size: int, rows_each: int) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid, regular

    codes, scales = pieces.read(".weight"), pieces.read(".weight_scale")
    scales = scales.reshape(1, 1) if scales.ndim < 2 else scales
    inputs, integers = codes.shape[1], codes.dtype == torch.int8
    zeros = None
    if ".weight_zero_point" in pieces:
        zeros = pieces.read(".weight_zero_point").to(torch.float32).reshape(scales.shape)
        zeros = zeros + 128 if integers else zeros
    return Grid(
        # From codes around 0 to codes from 0 on.
        unpack=lambda a, b: codes[a:b].view(torch.uint8) ^ 128 if integers else codes[a:b],
        scales=scales,
        dtype=scales.dtype,
        levels=256 if integers else 0,
        zeros=zeros,
        middle=128 if integers else 0,
        index=regular(
            torch.from_numpy(_index(pieces, inputs, size, scales.shape[1])), scales.shape[1]
        ),
        rows_each=rows_each,
    )


# --- floats of 4 and 8 bits, in microscaling formats ----------------------------------------------


def _four_bits(pieces: Pieces, config: dict[str, Any]) -> QuantisedWeight:
    pieces.expect(".weight_packed", ("uint8",))
    if len(pieces.codes.shape) not in (2, 3):
        raise pieces.unlike(".weight_packed", "[out, in / 2] or [experts, out, in / 2]")
    *rows, half = pieces.codes.shape
    nv = pieces[".weight_scale"].dtype == "float8_e4m3fn"
    size = 16 if nv else 32
    groups = -(-2 * half // size)
    pieces.expect(".weight_scale", ("float8_e4m3fn",) if nv else E8M0, (*rows, groups))
    if nv and ".weight_global_scale" not in pieces:
        raise pieces.refusal("there is no 'weight_global_scale' beside it; save it again")
    form = "nvfp4" if nv else "mxint4" if _is_mxint4(config, pieces.prefix) else "mxfp4"
    return QuantisedWeight(
        name=_name(pieces),
        shape=(*rows, 2 * half),
        dtype="bfloat16",  # whatever the model's: the tool unpacks to it
        layout=READER.name,
        form=form,
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load_four_bits, pieces, form),
    )


def _is_mxint4(config: dict[str, Any], module: str) -> bool:
    """Whether AutoRound says that codes stand for quarters: nothing else tells them apart."""
    layers = config.get("extra_config")
    own = layers.get(module) if isinstance(layers, dict) else None
    said = own.get("data_type") if isinstance(own, dict) else None
    return str(said or config.get("data_type", "")).startswith("mx_int")


def _load_four_bits(pieces: Pieces, form: str) -> Loaded:
    import torch

    from engine.checkpoint.packed.floats import E2M1, MXINT4, powers_of_two
    from engine.checkpoint.packed.grid import Grid, regular
    from engine.checkpoint.packed.unpacking import unpacked

    codes = pieces.read(".weight_packed").flatten(0, -2)
    scales = pieces.read(".weight_scale").flatten(0, -2)
    inputs, size = 2 * codes.shape[1], 16 if form == "nvfp4" else 32
    if form == "nvfp4":
        whole = pieces.read(".weight_global_scale").to(torch.float32).reshape(-1, 1)
        if not len(whole) or len(scales) % len(whole) or (len(whole) > 1 and not _each(pieces)):
            raise pieces.unlike(".weight_global_scale", "one number, or one for each expert")
        scales = scales.to(torch.float32) / whole.repeat_interleave(len(scales) // len(whole), 0)
    else:
        scales = powers_of_two(scales)
    return Grid(
        unpack=lambda first, last: unpacked(codes[first:last], 4, inputs),
        scales=scales,
        dtype=torch.bfloat16,
        levels=16,
        table=MXINT4 if form == "mxint4" else E2M1,
        index=regular(torch.arange(inputs) // size, scales.shape[1]),
    )


def _each(pieces: Pieces) -> bool:
    """Whether there is a scale of the whole for each expert."""
    experts = pieces.codes.shape[0] if len(pieces.codes.shape) == 3 else 1
    return pieces[".weight_global_scale"].elements == experts


def _mxfp8(pieces: Pieces) -> QuantisedWeight:
    out, inputs = pieces.codes.shape
    pieces.expect(".weight_scale", E8M0, (out, -(-inputs // 32)))
    return QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(out, inputs),
        dtype="bfloat16",
        layout=READER.name,
        form="mxfp8",
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load_mxfp8, pieces),
    )


def _load_mxfp8(pieces: Pieces) -> Loaded:
    import torch

    from engine.checkpoint.packed.floats import powers_of_two
    from engine.checkpoint.packed.grid import Grid, regular

    codes = pieces.read(".weight")
    scales = powers_of_two(pieces.read(".weight_scale"))
    return Grid(
        unpack=lambda first, last: codes[first:last],
        scales=scales,
        dtype=torch.bfloat16,
        levels=0,
        index=regular(torch.arange(codes.shape[1]) // 32, scales.shape[1]),
    )


READER = Reader(
    name="compressed-tensors",
    recognises=lambda _, tensor: (
        tensor.name.endswith(".weight_packed") and "float" not in tensor.dtype
    ),
    methods=("compressed-tensors", "auto-round"),
    weights=_weights,
)
