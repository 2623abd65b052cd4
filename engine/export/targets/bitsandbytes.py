"""``--to bitsandbytes``: a ``BitsAndBytesConfig`` of transformers, with the modules to skip.

One format for all linear modules but those to skip. A key skips a module that it matches from the
start up to a dot, as a regular expression, or whose name ends with it (transformers 5.23,
``quantizers/quantizers_utils.py``: ``should_convert_module``). A list given replaces the default,
so that a head that is kept must be named. A key is the plain name, which vLLM reads as well,
where no other module is hit by it; else an anchored expression.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from engine.export.rules import as_json, method_of, why_no_method, why_no_role, why_not_at_all
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "bitsandbytes"
_BLOCK = 64
"""The block size of transformers' ``Linear4bit``, which it does not let one set."""


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    methods: dict[str, tuple[str, ...]] = {"outlier": (), "a8": ()}
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, methods)) is not None:
        return why
    if fmt.name in ("nf4", "fp4"):
        if fmt.group_size != _BLOCK:
            return f"transformers loads {fmt.name} in blocks of {_BLOCK} only"
        return None
    if fmt.name == "int8" and fmt.symmetric and fmt.strategy == "channel":
        if not fmt.methods:
            return "LLM.int8() rounds inputs too: write int8+a8, or int8+outlier6"
        return None
    return f"{_TOOL} has no {fmt}"


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "head" and weight.tied:
        return "transformers does not load a head tied to the embedding in bitsandbytes' formats"
    return why_no_role(weight, _TOOL, ("linear", "conv1d", "head"))


def _alike(fmt: Format | None, weight: Weight) -> str | None:
    return None if fmt is None else "all"


def skips(key: str, name: str) -> bool:
    """Whether a key of the list skips a module: transformers' rule."""
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    try:
        return bool(re.match(rf"(?:{key}){boundary}", name)) or name.endswith(key)
    except re.error:
        return True  # transformers would fail on such a key


def skip_key(name: str, others: Collection[str]) -> str:
    """A key that skips a module and none of the others."""
    plain = skips(name, name) and not any(skips(name, other) for other in others)
    return name if plain and not re.search(r"[^\w.\-]", name) else f"{re.escape(name)}$"


def _words(words: Words) -> str:
    fmt = words.quantised[0][1]
    converted = [layer.module for layer, _ in words.quantised]
    config: dict[str, Any] = {"quant_method": "bitsandbytes"}
    if fmt.name == "int8":
        outlier = method_of(fmt, "outlier")
        config |= {
            "load_in_8bit": True,
            "llm_int8_threshold": 0.0 if outlier is None else outlier.value,
        }
    else:
        dtype = words.layers[0].weight.dtype
        config |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": fmt.name,
            "bnb_4bit_use_double_quant": "dq" in dict(fmt.options),
            "bnb_4bit_compute_dtype": dtype,
        }
    config["llm_int8_skip_modules"] = [skip_key(name, converted) for name in words.kept]
    return as_json(config)


TARGET = Target(
    name="bitsandbytes",
    help="a BitsAndBytesConfig (JSON) for transformers",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    alike=_alike,
    why_alike="bitsandbytes has one format for all layers that are not skipped",
    words=_words,
    ending=".json",
    use=(
        "use it as: AutoModelForCausalLM.from_pretrained({source}, "
        "quantization_config=BitsAndBytesConfig.from_dict(json.load(open({path}))))"
    ),
)
