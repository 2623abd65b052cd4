"""``--to quark``: a ``QConfig`` of AMD Quark, as ``QConfig.to_dict`` writes it.

A name in ``layer_quant_config`` is looked up exactly, then as an ``fnmatch`` pattern, the first
that matches; ``exclude`` comes before (amd-quark 0.13,
``torch/quantization/model_transformation.py``). The global config quantises nothing, so that a
layer without a line is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.export.rules import (
    FUSED,
    as_json,
    glob_exactly,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "Quark"
_INTEGERS = {(2, True): "int2", (3, True): "int3", (4, True): "int4", (8, True): "int8"} | {
    (4, False): "uint4", (8, False): "uint8"
}  # fmt: skip


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, {})) is not None:
        return why
    if fmt.family == "integer":
        if (fmt.bits, fmt.symmetric) not in _INTEGERS:
            signed = "symmetric" if fmt.symmetric else "asymmetric"
            return f"{_TOOL} has no {signed} integers of {fmt.bits} bits"
        return why_no_scales(fmt, shape, _TOOL, tensor=fmt.bits in (4, 8))
    if fmt.family == "float8" and fmt.strategy in ("channel", "tensor"):
        return None
    if fmt.family == "microscaling":
        return None
    return f"{_TOOL} has no {fmt}"


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "head" and weight.tied:
        return f"{_TOOL} would quantise the embedding together with its tied head"
    return why_no_role(weight, _TOOL, ("linear", "head"))


_OBSERVERS = {
    "group": ("per_group", "PerGroupMinMaxObserver", -1),
    "channel": ("per_channel", "PerChannelMinMaxObserver", 0),
    "tensor": ("per_tensor", "PerTensorMinMaxObserver", None),
}


def spec_of(fmt: Format) -> dict[str, Any]:
    """The ``QTensorConfig`` of a weight."""
    scheme, observer, axis = _OBSERVERS[fmt.strategy or "tensor"]
    found: dict[str, Any] = {
        "dtype": _INTEGERS.get((fmt.bits, fmt.symmetric), ""),
        "is_dynamic": False,
        "qscheme": scheme,
        "ch_axis": axis,
        "group_size": fmt.group_size,
        "block_size": None,
        "symmetric": fmt.symmetric,
        "round_method": "half_even",
        "scale_type": "float",
        "zero_point_type": "int32",
        "scale_format": None,
        "scale_calculation_mode": None,
        "mx_element_dtype": None,
        "observer_cls": observer,
        "is_scale_quant": False,
    }
    if fmt.family == "float8":
        found |= {"dtype": fmt.name.replace("-", "_")}
    if fmt.family == "microscaling":
        found |= {
            "dtype": "fp4" if fmt.bits == 4 else "fp8_e4m3",
            "symmetric": None,
            "scale_format": "e8m0",
            "scale_calculation_mode": "even",
            "observer_cls": "PerBlockMXObserver",
        }
    return found


def _layer(weight: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "input_tensors": None, "output_tensors": None, "weight": weight, "bias": None,
        "target_device": None,
    }  # fmt: skip


def _words(words: Words) -> str:
    return as_json(
        {
            "quant_method": "quark",
            "quant_mode": "eager_mode",
            "global_quant_config": _layer(None),
            "layer_type_quant_config": {},
            "layer_quant_config": {
                glob_exactly(layer.module): _layer(spec_of(fmt)) for layer, fmt in words.quantised
            },
            "exclude": [glob_exactly(name) for name in words.kept],
            "algo_config": None,
            "softmax_quant_spec": None,
            "kv_cache_quant_config": {},
            "kv_cache_post_rope": False,
        }
    )


TARGET = Target(
    name="quark",
    help="a QConfig (JSON) for AMD Quark",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    mixed=FUSED,
    words=_words,
    ending=".json",
    use=(
        "use it as: config = QConfig.from_dict(json.load(open({path}))); "
        "ModelQuantizer(config).quantize_model(model)"
    ),
    differs="Quark quantises itself: its figures can differ a little from those measured",
)
