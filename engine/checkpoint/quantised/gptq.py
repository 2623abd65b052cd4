"""GPTQ: ``P.qweight``, ``P.qzeros``, ``P.scales`` and maybe ``P.g_idx``, whoever writes it.

Codes are packed along the inputs, ``qweight [in · bits / 32, out]``, zero points along the outputs,
``qzeros [groups, out · bits / 32]``, the first in the lowest bits; ``scales [groups, out]``.
Version 1 stores ``zero - 1``, version 2 ``zero``; the planar layout splits codes into planes.
AutoRound writes the same without ``g_idx``. AWQ has the same names with other shapes.

Source: GPTQModel 7.7, ``utils/model_dequant.py``, ``utils/planar_packing.py`` and
``utils/model.py`` (``convert_gptq_v1_to_v2_format_module``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.packed.declared import declared_config, overridden, whole_number
from engine.checkpoint.packed.form import integer_form
from engine.checkpoint.packed.pieces import FLOATS, HALVES, Pieces, pieces_of
from engine.checkpoint.quantised.reader import Reader
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint.packed.four_bits import Array, FourBits

Version = Literal["v1", "v2", "planar"]

BITS = (2, 3, 4, 5, 6, 7, 8)
_SAMPLED = 4096
"""Zero points of a layer that are looked at before it is read, to tell the versions apart."""


@dataclass(frozen=True)
class _Layer:
    """How one weight is packed."""

    pieces: Pieces
    bits: int
    inputs: int
    outputs: int
    groups: int
    group: int | None
    """Inputs that share a scale; None where ``g_idx`` says which."""
    version: Version
    carries: bool
    """Whether zero points were made less by one as whole words, so that a borrow ran through."""


def _weights(checkpoint: Checkpoint) -> Iterator[QuantisedWeight]:
    config = declared_config(checkpoint)
    for pieces in pieces_of(checkpoint, ".qweight", (".qzeros", ".scales"), (".g_idx",)):
        if is_gptq(pieces, config):
            yield _weight(pieces, config)


def is_gptq(pieces: Pieces, config: dict[str, Any]) -> bool:
    """Whether the shapes are those of GPTQ; where they are of AWQ too, the config decides."""
    codes, zeros, scales = (pieces[name].shape for name in (".qweight", ".qzeros", ".scales"))
    if not len(codes) == len(zeros) == len(scales) == 2 or pieces.codes.dtype != "int32":
        return False
    fits = codes[1] == scales[1] and zeros[0] == scales[0]
    turned = codes[0] == scales[0] and scales[1] == 8 * zeros[1]
    return fits and not (turned and config.get("quant_method") == "awq")


def _weight(pieces: Pieces, config: dict[str, Any]) -> QuantisedWeight:
    settings = overridden(config, pieces.prefix)
    layer = _layer(pieces, {} if settings is None else settings)
    symmetric = (settings or {}).get("sym")
    symmetric = symmetric if isinstance(symmetric, bool) else None
    version, declared, read_as = _version(layer, symmetric)
    layer = replace(layer, version=version)
    scales = pieces[".scales"].dtype
    size = layer.group if layer.group is not None else -(-layer.inputs // layer.groups)
    size = _declared_group(settings or {}, layer) or size
    found = QuantisedWeight(
        name=f"{pieces.prefix}.weight",
        shape=(layer.outputs, layer.inputs),
        dtype=scales,
        layout=READER.name,
        form=integer_form(layer.bits, None if layer.groups == 1 else size, symmetric=symmetric),
        pieces=pieces.names,
        bits=pieces.bits,
        load=partial(_load, layer),
        packed=_packs(layer),
        declared=declared,
        read_as=read_as,
    )
    return replace(found, otherwise=tuple(_otherwise(found, layer)))


def _otherwise(found: QuantisedWeight, layer: _Layer) -> Iterator[QuantisedWeight]:
    """The weight with zero points of the other version."""
    if layer.version == "planar":
        return
    version: Version = "v2" if layer.version == "v1" else "v1"
    yield replace(
        found,
        load=partial(_load, replace(layer, version=version)),
        packed=_packs(replace(layer, version=version)),
        declared=f"GPTQ {layer.version}",
        read_as=f"GPTQ {version}",
    )


def _layer(pieces: Pieces, settings: dict[str, Any]) -> _Layer:
    """Bits, groups and sizes from the shapes; where several fit, as the config says."""
    pieces.expect(".scales", FLOATS)
    pieces.expect(".qzeros", ("int32",))
    words, outputs = pieces[".qweight"].shape
    groups, zero_words = pieces[".qzeros"].shape
    named = whole_number(settings, "bits")
    inputs = _from_g_idx(pieces)
    fitting = [
        bits
        for bits in BITS
        if zero_words == -(-outputs * bits // 32)
        and words == -(-(inputs or words * 32 // bits) * bits // 32)
        and pieces[".scales"].shape == (groups, outputs)
    ]
    if not fitting or not groups or not words:
        shapes = ", ".join(f"{t.name} {list(t.shape)}" for t in pieces.found.values())
        raise pieces.refusal(
            f"the shapes of its tensors fit no number of bits from 2 to 8 ({shapes}); save it again"
        )
    bits = named if named in fitting else fitting[0]
    assert bits is not None
    inputs = inputs or words * 32 // bits
    said = str(settings.get("checkpoint_format") or settings.get("packing_format") or "gptq")
    return _Layer(
        pieces=pieces,
        bits=bits,
        inputs=inputs,
        outputs=outputs,
        groups=groups,
        group=_group(pieces, settings, inputs, groups),
        version=_declared_version(said.lower()),
        carries=_by_gptqmodel(settings) and bits in (2, 4, 8),
    )


def _from_g_idx(pieces: Pieces) -> int | None:
    if ".g_idx" not in pieces:
        return None
    index = pieces[".g_idx"]
    if index.dtype not in ("int32", "int64") or len(index.shape) != 1 or not index.shape[0]:
        raise pieces.unlike(".g_idx", "int32 [in], the group of each input")
    return index.shape[0]


def _group(pieces: Pieces, settings: dict[str, Any], inputs: int, groups: int) -> int | None:
    """Inputs that share a scale, where ``g_idx`` does not say."""
    if ".g_idx" in pieces:
        return None
    named = whole_number(settings, "group_size")
    if named is not None and named > 0 and -(-inputs // named) == groups:
        return named
    if inputs % groups:
        raise pieces.refusal(
            f"{groups} groups of scales do not divide {inputs} inputs, and there is no g_idx that "
            "says which input is in which; save it again"
        )
    return inputs // groups


def _declared_group(settings: dict[str, Any], layer: _Layer) -> int | None:
    named = whole_number(settings, "group_size")
    fits = named is not None and named > 0 and -(-layer.inputs // named) == layer.groups
    return named if fits else None


def _declared_version(said: str) -> Version:
    """Of AutoRound, ``auto_round:auto_gptq`` is version 1, and what it calls its own version 2."""
    if said == "gptq_p":
        return "planar"
    own = said.startswith("auto_round") and "gptq" not in said.replace("gptqmodel", "")
    return "v2" if said == "gptq_v2" or own or said == "auto_round:gptqmodel" else "v1"


def _by_gptqmodel(settings: dict[str, Any]) -> bool:
    meta = settings.get("meta")
    writers = meta.get("quantizer") if isinstance(meta, dict) else None
    first = writers[0] if isinstance(writers, list) and writers else writers
    return isinstance(first, str) and first.lower().startswith("gptqmodel")


def _version(layer: _Layer, symmetric: bool | None) -> tuple[Version, str, str]:
    """How zero points are stored, what was declared, and what is read instead, if that differs.

    Those of symmetric weights are all the same, the middle of the codes, which tells the versions
    apart whatever the config says.
    """
    if symmetric is not True or layer.version == "planar":
        return layer.version, "", ""
    checkpoint, zeros = layer.pieces.checkpoint, layer.pieces[".qzeros"]
    # A few words of one row, not the tensor: this runs for every layer as a checkpoint opens.
    seen = set(_first_codes(checkpoint.read_array(zeros.name, 1), layer.bits).tolist())
    middle = 1 << (layer.bits - 1)
    stored: Version | None = {middle - 1: "v1", middle: "v2"}.get(  # type: ignore[assignment]
        seen.pop() if len(seen) == 1 else -1
    )
    if stored is None or stored == layer.version:
        return layer.version, "", ""
    value = middle if stored == "v2" else middle - 1
    return (
        stored,
        f"GPTQ {layer.version}",
        f"GPTQ {stored}: its symmetric zero points are stored as {value}",
    )


def _first_codes(words: Array, bits: int) -> Array:
    """The first codes of some words, a stream of bits with the lowest first."""
    import numpy as np

    stream = np.unpackbits(words.reshape(-1).view(np.uint8), bitorder="little")
    codes = stream[: len(stream) // bits * bits].reshape(-1, bits)[:_SAMPLED]
    found: Array = codes @ (1 << np.arange(bits))
    return found


def _zero_codes(layer: _Layer, words: Tensor, version: Version) -> Tensor:
    """Zero points ``[groups, out]``, uint8; 0 to ``2^bits`` where version 1 wraps around."""
    from engine.checkpoint.packed.unpacking import planar, unpacked

    mask = (1 << layer.bits) - 1
    if version == "planar":
        return planar(words, layer.bits, layer.outputs)
    if version == "v1" and layer.carries:
        one = sum(1 << bit for bit in range(0, 32, layer.bits))
        return unpacked(words + one, layer.bits, layer.outputs)
    stored = unpacked(words, layer.bits, layer.outputs)
    return (stored + 1) & mask if version == "v1" else stored


def _load(layer: _Layer) -> Loaded:
    import torch

    from engine.checkpoint.packed.grid import Grid, regular
    from engine.checkpoint.packed.unpacking import planar, unpacked

    read = layer.pieces.read
    words = read(".qweight")
    zeros = _zero_codes(layer, read(".qzeros"), layer.version)
    scales = read(".scales").T.contiguous()
    unpack = planar if layer.version == "planar" else unpacked
    index = _index(layer)
    return Grid(
        unpack=lambda a, b: unpack(words[:, a:b].T.contiguous(), layer.bits, layer.inputs),
        scales=scales,
        dtype=scales.dtype,
        levels=1 << layer.bits,
        zeros=zeros.T.contiguous(),
        index=regular(torch.from_numpy(index), layer.groups),
        packed=_packed(layer, words.numpy(), index) if _packs(layer) else None,
    )


def _packs(layer: _Layer) -> Callable[[], FourBits] | None:
    """How a compiled loop takes it; None if it does not know it."""
    known = layer.bits == 4 and layer.version != "planar"
    return partial(_packed, layer) if known and layer.pieces[".scales"].dtype in HALVES else None


def _packed(layer: _Layer, words: Array | None = None, index: Array | None = None) -> FourBits:
    """The layer as a compiled loop takes it.

    Args:
        layer: which one.
        words: its codes, if they are read already; so is ``index``.
    """
    import numpy as np

    from engine.checkpoint.packed.four_bits import four_bits, nibbles
    from engine.checkpoint.packed.orders import DOWN

    read = layer.pieces.array
    stored, one = read(".qzeros"), np.uint32(0x11111111)
    if layer.version == "v1" and layer.carries:
        zeros = nibbles(stored + one)
    else:
        zeros = nibbles(stored)
        zeros = (zeros + 1) & 15 if layer.version == "v1" else zeros
    return four_bits(
        read(".qweight") if words is None else words,
        DOWN,
        (layer.outputs, layer.inputs),
        read(".scales").T,
        layer.pieces[".scales"].dtype,
        _index(layer) if index is None else index,
        zeros[:, : layer.outputs].T,
    )


def _index(layer: _Layer) -> Array:
    """The group of each input, int64.

    Raises:
        CheckpointError: an input is in a group that does not exist.
    """
    import numpy as np

    columns = np.arange(layer.inputs)
    if layer.group is not None:
        return columns // layer.group
    index = layer.pieces.signed(".g_idx").astype(np.int64)
    layer.pieces.check_index(".g_idx", index, layer.inputs, layer.groups)
    if layer.groups > 1 and not index.any():  # old files leave it at zero where it is not used
        return columns // -(-layer.inputs // layer.groups)
    return index


READER = Reader(
    name="gptq",
    recognises=lambda _, tensor: tensor.name.endswith(".qweight") and "float" not in tensor.dtype,
    methods=("gptq", "gptqmodel", "auto-round", "intel/auto-round"),
    weights=_weights,
)
