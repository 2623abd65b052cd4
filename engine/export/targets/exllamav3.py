"""``--to exllamav3``: the bits of every tensor, for ``convert.py --recipe``.

Every tensor of the blocks must have an entry, and every entry must match one; a key with ``*``,
``?`` or ``[`` is an ``fnmatch`` pattern, the last that matches decides, and 16 keeps a tensor
(exllamav3 1.6, ``conversion/allocation.py``: ``create_q_strategy_from_recipe``). The head has
``head_bits``; the embedding is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.export.rules import UNTIES, as_yaml, glob_exactly, why_no_role, why_not_at_all
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "ExLlamaV3"
_KEPT = 16


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if fmt.family != "integer" or {method.name for method in fmt.methods} - {"gptq", "clip"}:
        return f"{_TOOL} has codes of its own, of 1 to 8 bits: give each layer a plain int2 to int8"
    return why_not_at_all(fmt, shape)


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if weight.role == "head" and weight.tied:
        return None  # it makes a copy
    return why_no_role(weight, _TOOL, ("linear", "head"))


def _words(words: Words) -> str:
    tensors: dict[str, int] = {}
    head, bits, weights = _KEPT, 0, 0
    for layer in words.layers:
        fmt = layer.format
        held = _KEPT if fmt is None or fmt.kept else fmt.bits
        if layer.weight.role == "head":
            head = held
        elif layer.weight.role == "linear" and layer.weight.block >= 0:
            name = layer.module
            tensors[glob_exactly(name) if re.search(r"[*?\[]", name) else name] = held
            size = layer.weight.shape[-1] * layer.weight.shape[-2]
            if held != _KEPT:
                bits, weights = bits + held * size, weights + size
    return as_yaml(
        {"target_bpw": round(bits / weights, 4) if weights else _KEPT, "head_bits": head,
         "tensors": tensors}
    )  # fmt: skip


TARGET = Target(
    name="exllamav3",
    help="bits of every tensor (YAML) for ExLlamaV3's convert.py",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    unties=UNTIES,
    words=_words,
    ending=".yaml",
    use="use it as: python convert.py -i {model} -o OUT -w WORK --recipe {file}",
    differs=(
        "only the bits of each layer are carried over: ExLlamaV3 has trellis codes of its own, "
        "better at the same bits than what was measured"
    ),
)
