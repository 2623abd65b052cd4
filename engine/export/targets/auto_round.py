"""``--to auto-round``: a ``layer_config`` of AutoRound, with every layer of the model.

A name that is a supported module's is taken as such; any other is searched for as a regular
expression in all names (auto-round 0.16, ``compressors/layer_config_resolver.py``:
``_traverse_and_expand_layer_config``). All names here are modules', so no other is touched, and
with a line for every layer the scheme of the call decides none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.export.rules import (
    FUSED,
    as_json,
    in_words,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "AutoRound"
_BITS = (2, 3, 4, 8)
_KEPT = {"bits": 16, "data_type": "float", "act_bits": 16, "act_data_type": "float"}


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, {})) is not None:
        return why
    if fmt.family == "integer":
        if fmt.bits not in _BITS:
            return f"{_TOOL} packs {in_words(_BITS)} bits, not {fmt.bits}"
        if fmt.bits == 8 and not fmt.symmetric:
            return f"{_TOOL} refuses 8 bits with zero points, which its formats do not serve"
        if shape[-1] % 32 or shape[-2] % 32:
            return f"{_TOOL} keeps weights whose sides are no multiples of 32, as {list(shape)}"
        return why_no_scales(fmt, shape, _TOOL)
    if fmt.name in ("mxfp4", "mxfp8", "nvfp4"):
        return None
    if fmt.name == "fp8-e4m3" and fmt.strategy == "channel":
        return None
    return f"{_TOOL} has no {fmt}"


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "head" and weight.tied:
        return f"{_TOOL} does not quantise a head that is tied to the embedding"
    return why_no_role(weight, _TOOL, ("linear", "head"))


def values_of(fmt: Format | None) -> dict[str, Any]:
    """The values of a layer: bits and data type of weights, no rounding of inputs."""
    if fmt is None or fmt.kept:
        return dict(_KEPT)
    types = {"microscaling": "mx_fp", "nvfp4": "nv_fp", "float8": "fp"}
    return {
        "bits": fmt.bits,
        "group_size": fmt.group_size if fmt.strategy == "group" else -1,
        "sym": fmt.symmetric,
        "data_type": types.get(fmt.family, "int"),
        "act_bits": 16,
        "act_data_type": "float",
    }


def _words(words: Words) -> str:
    kept = dict.fromkeys(words.kept, None)
    formats = {**kept, **{layer.module: fmt for layer, fmt in words.quantised}}
    return as_json({name: values_of(fmt) for name, fmt in formats.items()})


TARGET = Target(
    name="auto-round",
    help="a layer_config (JSON) for AutoRound",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    mixed=FUSED,
    words=_words,
    ending=".json",
    use='use it as: AutoRound({source}, scheme="W4A16", layer_config=json.load(open({path})))',
    differs="AutoRound learns its rounding: expect better figures than measured, unless iters=0",
)
