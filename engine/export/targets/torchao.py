"""``--to torchao``: a ``FqnToConfig`` of torchao, with exact names.

``quantize_(model, config, filter_fn=None)`` looks a parameter's or a module's full name up first,
then tries ``re:`` patterns with ``re.fullmatch``, then ``_default`` (torchao 0.18,
``quantization/quant_api.py``: ``_fqn_to_config_handler``). Without ``_default`` a layer without a
line is left as it is. The file is what ``torchao.core.config.config_to_dict`` writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engine.export.rules import (
    FUSED,
    UNTIES,
    as_json,
    method_of,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "torchao"


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, {"a8": ()})) is not None:
        return why
    whole = fmt.name == "int8" and fmt.symmetric and fmt.strategy in ("channel", "tensor")
    if method_of(fmt, "a8") and not (whole and fmt.strategy == "channel"):
        return "8-bit inputs require int8 per channel, symmetric"
    if fmt.family == "integer":
        return why_no_scales(fmt, shape, _TOOL, tensor=whole)
    if fmt.family == "float8" and fmt.strategy in ("channel", "tensor"):
        return None
    return f"{_TOOL} has no stable config for {fmt}"


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    return why_no_role(weight, _TOOL, ("linear", "head"))


def _typed(type: str, data: Any, version: int | None = None) -> dict[str, Any]:
    found = {"_type": type} if version is None else {"_type": type, "_version": version}
    return {**found, "_data": data}


def config_of(fmt: Format) -> dict[str, Any]:
    """The config of a format, as ``config_to_dict`` writes it."""
    whole = (
        _typed("PerTensor", {}, 1) if fmt.strategy == "tensor" else _typed("PerRow", {"dim": -1}, 1)
    )
    if fmt.family == "float8":
        name = "float8_e5m2" if fmt.name == "fp8-e5m2" else "float8_e4m3fn"
        data = {
            "weight_dtype": _typed("torch.dtype", name),
            "set_inductor_config": True,
            "granularity": whole,
        }
        return _typed("Float8WeightOnlyConfig", data, 2)
    if method_of(fmt, "a8"):
        data = {"act_mapping_type": _typed("MappingType", "SYMMETRIC"), "granularity": whole}
        return _typed("Int8DynamicActivationInt8WeightConfig", data, 2)
    if fmt.name == "int8" and fmt.symmetric and fmt.strategy != "group":
        return _typed("Int8WeightOnlyConfig", {"granularity": whole}, 2)
    group = _typed("PerGroup", {"group_size": fmt.group_size}, 1)
    data = {
        "weight_dtype": _typed("torch.dtype", f"int{fmt.bits}"),
        "granularity": group if fmt.strategy == "group" else _typed("PerAxis", {"axis": 0}, 1),
        "mapping_type": _typed("MappingType", "SYMMETRIC" if fmt.symmetric else "ASYMMETRIC"),
    }
    return _typed("IntxWeightOnlyConfig", data, 2)


def _words(words: Words) -> str:
    by_name = {
        (f"re:{re.escape(name)}" if name.startswith("re:") or name == "_default" else name): fmt
        for name, fmt in ((layer.module, fmt) for layer, fmt in words.quantised)
    }
    configs = {name: config_of(fmt) for name, fmt in by_name.items()}
    return as_json(_typed("FqnToConfig", {"fqn_to_config": configs}, 1))


TARGET = Target(
    name="torchao",
    help="an FqnToConfig (JSON) for torchao",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    mixed=FUSED,
    unties=UNTIES,
    words=_words,
    ending=".json",
    use="use it as: quantize_(model, config_from_dict(json.load(open({path}))), filter_fn=None)",
    differs=(
        "IntxWeightOnlyConfig has qtui's grid on every device; torchao's fast int4 kernels need "
        "Int4WeightOnlyConfig in its place"
    ),
)
