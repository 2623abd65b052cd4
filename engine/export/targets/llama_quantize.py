r"""``--to llama-quantize``: the types of all tensors, for ``llama-quantize --tensor-type-file``.

The file is words ``PATTERN=TYPE``. A pattern is put into lower case and searched for in a
tensor's name as a regular expression of C++ (ECMAScript), and the first that is found decides
(``parse_tensor_type`` in ``tools/quantize/quantize.cpp``, ``llama_tensor_get_type`` in
``src/llama-quant.cpp`` of llama.cpp). Names of GGUF are in lower case, so an anchored one is
exact. They come from the ``gguf`` package's own map of the architecture; ``--pure`` would ignore
the file in older versions, so every tensor has a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.checkpoint.llama_cpp_names import architecture_of, llama_cpp_names
from engine.export.refusal import NotExportable
from engine.export.rules import method_of, why_no_method, why_not_at_all
from engine.export.target import Target, Weight, Words
from engine.formats.grammar import Format

_TOOL = "llama-quantize"
_KEPT = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_INFORMED = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs")
"""Types that need an importance matrix, except for head and embedding: those of
``tensor_requires_imatrix``."""
_STORED = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def _why_not(fmt: Format, shape: Sequence[int], dtype: str) -> str | None:
    if fmt.kept:
        return None
    if fmt.family != "gguf":
        return f"GGUF files have no {fmt.name}"
    return why_not_at_all(fmt, shape) or why_no_method(fmt, _TOOL, {"imatrix": ()})


def _why_not_weight(fmt: Format, weight: Weight) -> str | None:
    if re.search(r"(?:^|\.)per_layer_model_projection$", weight.name):
        return f"{_TOOL} never quantises it"
    inside = weight.role not in ("head", "embedding")
    if inside and fmt.name in _INFORMED and method_of(fmt, "imatrix") is None:
        return f"{_TOOL} writes {fmt.name} with an importance matrix only: write {fmt.name}+imatrix"
    return None


def _alike(fmt: Format | None, weight: Weight) -> str | None:
    return "tied" if weight.tied else None


def tensor_names(words: Words) -> dict[str, list[str]]:
    """Names in GGUF by layer: two of experts whose gate and up are one layer here.

    Raises:
        NotExportable: the gguf package does not know the architecture, or a layer.
    """
    layers = [layer for layer in words.layers
              if not (layer.weight.role == "head" and layer.weight.tied)]  # fmt: skip
    # A tied head is one tensor with the embedding.
    parts = {layer.weight.name: layer.tensors for layer in layers}
    found = llama_cpp_names(words.model_type, words.blocks, parts)
    if found is None:
        why = f"the gguf package has no architecture {words.model_type!r}"
        raise NotExportable({layer.weight.name: why for layer in words.layers}, _FORM)
    wanted = architecture_of(words.model_type)
    unknown = {
        name: f"{wanted} in GGUF has no tensor for it alone"
        for name, of_layer in found.items()
        if None in of_layer
    }
    if unknown := {name: why for name, why in unknown.items() if name in _quantised(words)}:
        raise NotExportable(unknown, _FORM)
    return {
        name: [each for each in of_layer if each is not None]
        for name, of_layer in found.items()
        if None not in of_layer
    }


def _quantised(words: Words) -> set[str]:
    return {layer.weight.name for layer, _ in words.quantised}


def _words(words: Words) -> str:
    names = tensor_names(words)
    lines = []
    for layer in words.layers:
        fmt = layer.format
        if fmt is None:
            type = _STORED.get(layer.weight.dtype, "bf16")
        else:
            type = _KEPT.get(fmt.name, fmt.name)
        for name in names.get(layer.weight.name, []):
            pattern = name.removesuffix(".weight").replace(".", r"\.")
            lines.append(rf"^{pattern}\.weight$={type}")
    return "\n".join([*lines, ""])


_FORM = "types of llama-quantize"

TARGET = Target(
    name="llama-quantize",
    help="types of all tensors for llama.cpp's llama-quantize",
    why_not_expressed=_why_not,
    why_not_weight=_why_not_weight,
    alike=_alike,
    why_alike="GGUF files store a tied head and embedding as one tensor",
    form=_FORM,
    words=_words,
    names="disk",
    ending=".txt",
    use=(
        "use it as: llama-quantize --tensor-type-file {file} MODEL-f16.gguf MODEL.gguf Q4_K_M "
        "(the type at the end is for tensors without a line: there are none); for formats with "
        "+imatrix add --imatrix FILE, which qtui imatrix writes"
    ),
    differs=(
        "llama.cpp rounds as qtui does: without an importance matrix, or with +imatrix every "
        "tensor that the file of --imatrix has"
    ),
)
