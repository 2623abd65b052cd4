"""``--to gptqmodel``: a ``QuantizeConfig`` of GPTQModel with one ``dynamic`` rule a layer.

A rule is ``+:`` or ``-:`` (leave out) and a regular expression that is matched from the beginning
of a module's name; ``-:`` rules come first, then the first match from the top decides, and where
none matches the config's own values hold (GPTQModel 7.7, ``quantization/config.py``:
``_resolve_dynamic_override``). Anchored at both ends, with every other character escaped, a rule
is read as a literal name (``_extract_literal_regex_pattern``).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.export.gptq.expressed import rules_of
from engine.export.rules import (
    FUSED,
    UNTIES,
    as_json,
    in_words,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "GPTQModel"
_BITS = (2, 3, 4, 8)
_GROUPS = (16, 32, 64, 128, 256, 512, 1024)
_METHODS = {"gptq": ("damp", "actorder", "static")}


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None if fmt.name != "fp32" or dtype == "float32" else f"{_TOOL} casts no layer"
    if fmt.family != "integer":
        return f"{_TOOL}'s GPTQ has integer formats only"
    if fmt.bits not in _BITS:
        return f"{_TOOL} packs {in_words(_BITS)} bits for its kernels, not {fmt.bits}"
    return (
        why_not_at_all(fmt, shape)
        or why_no_method(fmt, _TOOL, _METHODS)
        or why_no_scales(fmt, shape, _TOOL, groups=_GROUPS)
    )


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    return why_no_role(weight, _TOOL, ("linear", "conv1d", "head"))


def _words(words: Words) -> str:
    # The commonest format as the config's own; other modules get a rule each.
    formats = {layer.module: fmt for layer, fmt in words.quantised}
    head = any(layer.weight.role == "head" for layer, _ in words.quantised)
    rules = rules_of(formats, words.kept, {"damp_percent": 0.05, "static_groups": False})
    dynamic = rules.pop("dynamic")  # the long part last
    return as_json({**rules, "lm_head": head, "dynamic": dynamic})


TARGET = Target(
    name="gptqmodel",
    help="a QuantizeConfig (JSON) for GPTQModel",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    mixed=FUSED,
    unties=UNTIES,
    words=_words,
    ending=".json",
    use="use it as: GPTQModel.load({source}, QuantizeConfig(**json.load(open({path}))))",
    differs=(
        "GPTQModel solves every layer by GPTQ: layers measured without +gptq come out better than "
        "measured, and its default damping is .05"
    ),
)
