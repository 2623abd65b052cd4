"""``--to llm-compressor``: a recipe for llm-compressor, which makes compressed-tensors checkpoints.

``oneshot(recipe=FILE)`` reads YAML of stages of modifiers. A target is a class name, an exact
module name, or ``re:`` and a regular expression that ``re.match`` tries (compressed_tensors 0.19,
``utils/match.py``: ``match_name``, ``match_class``); nothing else is quantised, so kept layers
need no line. Layers with ``+gptq`` go to a ``GPTQModifier``, the others to a
``QuantizationModifier``; modifiers that differ in what is one setting for all of a modifier's
layers are stages of their own (llm-compressor 0.14, ``recipe/recipe.py``: ``Recipe.from_dict``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.export.compressed.form import form_of
from engine.export.rules import (
    FUSED,
    UNTIES,
    as_yaml,
    exactly,
    method_of,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "llm-compressor"
_METHODS = {"gptq": ("damp", "actorder", "static"), "a8": ()}
_INPUTS = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
}  # fmt: skip


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None if fmt.name == _kept(dtype) else f"{_TOOL} casts no layer"
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, _METHODS)) is not None:
        return why
    form = form_of(fmt)
    if form is None or fmt.family == "gguf":
        return f"compressed-tensors has no {fmt.name}"
    if (why := form.why_not(fmt, shape)) is not None:
        return why
    if fmt.family not in ("integer", "float8") and method_of(fmt, "gptq"):
        return f"{_TOOL} solves integer formats and fp8 only"
    if method_of(fmt, "a8") and not (
        fmt.name == "int8" and fmt.symmetric and fmt.strategy != "group"
    ):
        return "8-bit inputs require int8 per channel or tensor, symmetric"
    return why_no_scales(fmt, shape, _TOOL, tensor=True)


def _kept(dtype: str) -> str:
    return {"float32": "fp32", "float16": "fp16"}.get(dtype, "bf16")


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    return why_no_role(weight, _TOOL, ("linear", "head"))


def target_of(module: str) -> str:
    """The target that matches a module and no other.

    A name without dots could be a class, and one that begins with ``re:`` an expression.
    """
    exact = "." in module and not module.startswith("re:")
    return module if exact else f"re:{exactly(module)}"


def scheme(fmt: Format) -> dict[str, Any]:
    """A ``QuantizationScheme`` without its targets."""
    weights: dict[str, Any] = {"num_bits": fmt.bits, "type": "int", "symmetric": fmt.symmetric}
    if fmt.strategy is not None:
        weights["strategy"] = fmt.strategy
    if fmt.strategy == "group":
        weights["group_size"] = fmt.group_size
    if fmt.family != "integer":
        weights |= {"type": "float", "symmetric": True}
    if fmt.strategy == "block":
        weights["block_structure"] = [fmt.group_size, fmt.group_size]
    if fmt.family == "microscaling":
        weights["scale_dtype"] = "torch.uint8"
    if fmt.family == "nvfp4":
        weights |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    found: dict[str, Any] = {"weights": weights}
    if method_of(fmt, "a8"):
        found["input_activations"] = dict(_INPUTS)
    return found


def _settings(fmt: Format) -> tuple[str, dict[str, Any]]:
    """The modifier of a format, and what is one setting for all layers of a modifier."""
    gptq = method_of(fmt, "gptq")
    if gptq is None:
        return "QuantizationModifier", {}
    options = dict(gptq.options)
    order = None
    if options.get("actorder"):
        order = "static" if options.get("static") else "group"
    return "GPTQModifier", {"dampening_frac": options.get("damp", 0.01), "actorder": order}


def _words(words: Words) -> str:
    stages: dict[tuple[str, str], tuple[dict[str, Any], dict[Format, list[str]]]] = {}
    for layer, fmt in words.quantised:
        modifier, settings = _settings(fmt)
        _, groups = stages.setdefault((modifier, str(settings)), (settings, {}))
        groups.setdefault(fmt, []).append(target_of(layer.module))
    return as_yaml(
        {
            f"qtui{number}_stage": {
                f"qtui{number}_modifiers": {
                    modifier: {
                        **settings,
                        "config_groups": {
                            f"group_{at}": {"targets": names, **scheme(fmt)}
                            for at, (fmt, names) in enumerate(groups.items())
                        },
                    }
                }
            }
            for number, ((modifier, _), (settings, groups)) in enumerate(stages.items())
        }
    )


TARGET = Target(
    name="llm-compressor",
    help="a recipe (YAML) for llm-compressor",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    mixed=FUSED,
    unties=UNTIES,
    words=_words,
    ending=".yaml",
    use="use it as: oneshot(model={source}, recipe={path})",
    differs="llm-compressor quantises itself: its figures can differ a little from those measured",
)
