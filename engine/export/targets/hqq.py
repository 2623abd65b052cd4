"""``--to hqq``: an ``HqqConfig`` of transformers.

HQQ knows a layer by its tag alone: its name without numbers, ``model`` and ``layers``
(``self_attn.q_proj``), so that all blocks have one format (hqq 0.2.8, ``models/base.py``:
``name_to_linear_tag``; transformers 5.23, ``integrations/hqq.py``). A tag without a line is kept,
as soon as one tag has a line.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.export.rules import (
    as_json,
    in_words,
    method_of,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "HQQ"
_BITS = (2, 3, 4, 8)


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if fmt.family != "integer" or fmt.bits not in _BITS:
        return f"{_TOOL} has integers of {in_words(_BITS)} bits only"
    if fmt.symmetric or method_of(fmt, "hqq") is None:
        return f"{_TOOL} moves zero points: write +hqq, with zero points (-asym)"
    return (
        why_not_at_all(fmt, shape)
        or why_no_method(fmt, _TOOL, {"hqq": ()})
        or why_no_scales(fmt, shape, _TOOL)
    )


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "head" and weight.tied:
        return f"{_TOOL} does not quantise a head that is tied to the embedding"
    return why_no_role(weight, _TOOL, ("linear", "head"))


def tag_of(name: str) -> str:
    """The tag of a module: HQQ's rule."""
    parts = (part for part in name.split(".") if part not in ("model", "layers"))
    return ".".join(part for part in parts if not part.isnumeric())


def _alike(fmt: Format | None, weight: Weight) -> str | None:
    return None if weight.role in ("embedding", "experts", "conv1d") else tag_of(weight.name)


def _words(words: Words) -> str:
    tags: dict[str, dict[str, int | None]] = {}
    for layer, fmt in words.quantised:
        tags[tag_of(layer.module)] = {"nbits": fmt.bits, "group_size": fmt.group_size, "axis": 1}
    kept = dict.fromkeys(tag_of(name) for name in words.kept)
    return as_json(
        {"dynamic_config": tags, "skip_modules": [tag for tag in kept if tag not in tags]}
    )


TARGET = Target(
    name="hqq",
    help="an HqqConfig (JSON) for transformers",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    alike=_alike,
    why_alike="HQQ knows layers by their kind alone, the same in all blocks",
    words=_words,
    ending=".json",
    use=(
        "use it as: AutoModelForCausalLM.from_pretrained({source}, "
        "quantization_config=HqqConfig(**json.load(open({path}))))"
    ),
)
