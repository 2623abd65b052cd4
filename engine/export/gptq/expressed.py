"""What the layout of GPTQ can hold, and its ``quantization_config``; no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from engine.export.rules import exactly, in_words, method_of, why_no_method, why_not_at_all
from engine.formats.grammar import Format

BITS = (2, 3, 4, 8)
"""Those that a word of version 1 holds. GPTQModel has others in a layout of its own."""
LIKE = "gptqmodel:0.9.0"
"""GPTQModel loads asymmetric weights of version 1 only from writers that say so: zero points of 0
wrap around, as it has written them since (``models/loader.py``, ``is_quantized_by_gptaq``)."""
_METHODS = {"gptq": ("damp", "actorder", "static"), "clip": (), "awq": (), "smooth": ()}
_NAME = "the GPTQ layout"


def why_not_expressed(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    """Why a weight of ``shape`` cannot be stored in this format; None if it can."""
    if fmt.kept:
        return None if fmt.name != "fp32" or dtype == "float32" else f"{_NAME} casts no layer"
    if fmt.family != "integer":
        return f"{_NAME} has integer formats only"
    if fmt.bits not in BITS:
        return f"{_NAME} packs {in_words(BITS)} bits, not {fmt.bits}"
    if why := why_not_at_all(fmt, shape) or why_no_method(fmt, _NAME, _METHODS):
        return why
    if fmt.strategy not in ("group", "channel"):
        return f"{_NAME} has scales per group or channel, not per {fmt.strategy}"
    out, row = shape[-2:]
    if fmt.group_size is not None and row % fmt.group_size:
        return f"{_NAME} needs groups that divide the row: {fmt.group_size} does not divide {row}"
    whole = 32 if fmt.bits == 3 else 32 // fmt.bits
    for size, side in ((row, "inputs"), (out, "outputs")):
        if size % whole:
            return f"{_NAME} packs {whole} codes at a time: {size:,} {side} are no multiple"
    return None


def values_of(fmt: Format) -> dict[str, Any]:
    """The values of a format, by the names that GPTQ's config has."""
    gptq = method_of(fmt, "gptq")
    options = {} if gptq is None else dict(gptq.options)
    found: dict[str, Any] = {
        "bits": fmt.bits,
        "group_size": -1 if fmt.strategy == "channel" else fmt.group_size,
        "sym": fmt.symmetric,
        "desc_act": bool(options.get("actorder", False)),
    }
    if gptq is not None:
        found["damp_percent"] = options.get("damp", 0.01)
    if options.get("static"):
        found["static_groups"] = True
    return found


def rules_of(
    formats: Mapping[str, Format], kept: Sequence[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The commonest format's values, and a ``dynamic`` rule for every module unlike it.

    Args:
        formats: of the quantised modules.
        kept: the other linear modules.
        defaults: what a rule must say where only its own format, or only the commonest, does.
    """
    usual = Counter(formats.values()).most_common(1)[0][0]
    dynamic: dict[str, Any] = {f"-:{exactly(name)}": {} for name in kept}
    for module, fmt in formats.items():
        if fmt != usual:
            given = {**defaults, **values_of(fmt)}
            said = values_of(fmt).keys() | values_of(usual).keys()
            dynamic[f"+:{exactly(module)}"] = {k: v for k, v in given.items() if k in said}
    return {**values_of(usual), "dynamic": dynamic}


def quantization_config(
    formats: Mapping[str, Format], kept: Sequence[str], head: str
) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint.

    Args:
        formats: of the quantised modules, by exact name.
        kept: the other linear modules.
        head: the module of the head.
    """
    symmetric = all(fmt.symmetric for fmt in formats.values())
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "format": "gptq",
        "pack_dtype": "int32",
        "lm_head": head in formats,
        "true_sequential": True,
        "static_groups": False,
        "damp_percent": 0.01,
        **rules_of(formats, kept, {"damp_percent": 0.01, "static_groups": False}),
        "meta": {"quantizer": ["qtui", *([] if symmetric else [LIKE])]},
    }
