"""``--to model-optimizer``: a PTQ recipe of NVIDIA Model Optimizer, with its ``quant_cfg``.

Entries are applied from the top, later ones replace earlier ones, and a name is an ``fnmatch``
pattern over quantisers such as ``model.layers.0.mlp.up_proj.weight_quantizer`` (modelopt 0.47,
``torch/quantization/conversion.py``: ``set_quantizer_by_cfg``, ``_match_quantizer``). So the first
entry turns all off, and each layer has one of its own with its wildcards escaped. In YAML,
``e4m3`` is read as the pair (4, 3) (``torch/opt/config_loader.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.export.rules import (
    as_yaml,
    glob_exactly,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "Model Optimizer"


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, {})) is not None:
        return why
    if fmt.family == "integer":
        if not fmt.symmetric:
            return f"{_TOOL} exports symmetric integers only"
        return why_no_scales(fmt, shape, _TOOL, tensor=True)
    if fmt.name in ("fp8-e4m3", "mxfp4", "mxfp8", "nvfp4"):
        return None
    return f"{_TOOL} has no {fmt.name}"


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "head" and weight.tied:
        return f"{_TOOL} would round the embedding together with its tied head"
    return why_no_role(weight, _TOOL, ("linear", "head"))


def quantizer(fmt: Format) -> dict[str, Any]:
    """The attributes of a weight's quantiser."""
    if fmt.family == "integer":
        number: int | str = fmt.bits
    else:
        number = "e2m1" if fmt.bits == 4 else "e4m3"
    blocks: dict[Any, Any] = {-1: fmt.group_size}
    if fmt.family in ("microscaling", "nvfp4"):
        scale = "e4m3" if fmt.family == "nvfp4" else "e8m0"
        return {
            "num_bits": number,
            "block_sizes": {**blocks, "type": "dynamic", "scale_bits": scale},
        }
    if fmt.strategy == "block":
        return {"num_bits": number, "block_sizes": {-1: fmt.group_size, -2: fmt.group_size}}
    if fmt.strategy == "group":
        return {"num_bits": number, "block_sizes": blocks}
    return {"num_bits": number, "axis": 0 if fmt.strategy == "channel" else None}


def _words(words: Words) -> str:
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    entries += [
        {
            "quantizer_name": f"{glob_exactly(layer.module)}.weight_quantizer",
            "cfg": quantizer(fmt),
            "enable": True,
        }
        for layer, fmt in words.quantised
    ]
    return as_yaml(
        {
            "metadata": {"recipe_type": "ptq", "description": "mixed precision by qtui"},
            "quantize": {"algorithm": "max", "quant_cfg": entries},
        }
    )


TARGET = Target(
    name="model-optimizer",
    help="a PTQ recipe (YAML) for NVIDIA Model Optimizer",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    mixed="TensorRT-LLM, vLLM and SGLang store fused layers as one tensor and need one format",
    words=_words,
    ending=".yaml",
    use="use it as: mtq.quantize(model, load_recipe({path}).quantize.model_dump())",
    differs=(
        "Model Optimizer divides by 2^(b-1)-1 where qtui divides by 2^(b-1)-.5: figures can differ "
        "a little from those measured"
    ),
)
