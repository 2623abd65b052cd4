"""``--to mlx``: parameters of every layer for mlx-lm's ``quant_predicate``.

``convert(..., quant_predicate=f)`` calls ``f(path, module)`` for every module that can be
quantised and takes a dict of its parameters, or False (mlx-lm 0.32, ``utils.py``:
``quantize_model``): a look-up by exact path. It asks only where ``q_group_size`` divides the row,
so that must be given: 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.export.rules import (
    as_json,
    in_words,
    why_no_method,
    why_no_role,
    why_no_scales,
    why_not_at_all,
)
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "MLX"
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_ASKED = 32
"""The ``q_group_size`` of the call."""


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if (why := why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, {})) is not None:
        return why
    if shape[-1] % _ASKED:
        return f"{_TOOL} quantises rows of multiples of {_ASKED} only, not of {shape[-1]}"
    if fmt.name in ("mxfp4", "mxfp8", "nvfp4"):
        return None
    if fmt.family != "integer":
        return f"{_TOOL} has no {fmt.name}"
    if fmt.bits not in _BITS:
        return f"{_TOOL} has {in_words(_BITS)} bits, not {fmt.bits}"
    if fmt.symmetric:
        return f"{_TOOL} stores a bias for every group: take a format with zero points (-asym)"
    return why_no_scales(fmt, shape, _TOOL, groups=_GROUPS, channel=False)


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    return why_no_role(weight, _TOOL, ("linear", "head", "embedding"))


def _alike(fmt: Format | None, weight: Weight) -> str | None:
    return "tied" if weight.tied else None


def parameters_of(fmt: Format) -> dict[str, Any]:
    """The parameters of a format in ``nn.quantize``."""
    mode = "affine" if fmt.family == "integer" else fmt.name
    return {"group_size": fmt.group_size, "bits": fmt.bits, "mode": mode}


def _words(words: Words) -> str:
    tied = {layer.module for layer in words.layers
            if layer.weight.tied and layer.weight.role == "head"}  # fmt: skip
    table: dict[str, Any] = {
        layer.module: False
        if layer.format is None or layer.format.kept
        else parameters_of(layer.format)
        for layer in words.layers
        if layer.module not in tied
    }
    return as_json(table)


TARGET = Target(
    name="mlx",
    help="parameters of every layer (JSON) for mlx-lm's quant_predicate",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    alike=_alike,
    why_alike="MLX reads a tied head from the embedding",
    words=_words,
    ending=".json",
    use=(
        "use it as: table = json.load(open({path})); convert({source}, quantize=True, "
        "q_group_size=32, quant_predicate=lambda path, module: table.get(path, False))"
    ),
    differs=(
        "MLX stores the smallest value of a group in place of a whole zero point: figures can "
        "differ a little from those measured"
    ),
)
