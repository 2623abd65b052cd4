"""Ask llama.cpp what its mixes give to the tensors of `tests.recipes.models`, and keep it.

Not run with the tests: it needs an environment of its own with llama.cpp in it, which takes some
minutes to build. In the root of the repository,

    python -m venv scratch
    scratch/bin/pip install llama-cpp-python==0.3.36 gguf==0.19.0 msgspec
    scratch/bin/python -m tests.bench.mixes_of_llama_cpp

writes ``tests/recipes/llama_cpp_mixes.json``: for every model and mix the types that
``llama_model_quantize`` gives, by the layer's name with its number left out, as runs over the
blocks.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import re
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from engine.recipes import importance_mixes
from engine.recipes.mixes import DEFAULTS
from tests.recipes.models import INNER, MODELS, VOCABULARY, Model

KEPT_IN = Path(__file__).parents[1] / "recipes" / "llama_cpp_mixes.json"
FTYPES = {
    "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14,
    "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29,
}  # fmt: skip


def gguf_names(model: Model, name: str) -> list[str]:
    """The tensors of a GGUF file that a layer becomes, by gguf's own table."""
    if name == "lm_head":
        return ["token_embd.weight" if model.tied else "output.weight"]
    if name.endswith("experts.gate_up_proj"):
        block = name.split(".")[2]
        return [f"blk.{block}.ffn_{kind}_exps.weight" for kind in ("gate", "up")]
    found = _names(model.gguf, model.blocks).get_name(name)
    assert found is not None, name
    return [f"{found}.weight"]


@functools.cache
def _names(architecture: str, blocks: int) -> gguf.TensorNameMap:
    arch = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    return gguf.get_tensor_name_map(arch, blocks)


def write_model(model: Model, file: Path) -> None:
    """A GGUF file of zeros, enough for llama.cpp to choose its types."""
    writer = gguf.GGUFWriter(file, model.gguf)
    writer.add_context_length(64)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.blocks)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.key_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(model.width // model.heads)
    writer.add_sliding_window(64)
    writer.add_vocab_size(VOCABULARY)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(model.inner)
        writer.add_expert_shared_feed_forward_length(INNER)
    written: set[str] = set()
    for row in model.rows():
        names = gguf_names(model, row.name)
        shape = list(row.shape)
        shape[-2] //= len(names)
        for name in names:
            if name not in written:
                writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
                written.add(name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(model: Model, source: Path, mix: str) -> dict[str, str]:
    """The type that llama.cpp says it would give to every layer of a file."""
    said: list[bytes] = []

    @llama_cpp.llama_log_callback
    def hear(_level: int, text: bytes, _data: object) -> None:
        said.append(text)

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run = FTYPES[mix], True
    one = ctypes.c_float(1)
    kind = llama_cpp.llama_cpp.llama_model_imatrix_data
    entries = (kind * 2)(kind(b"any.weight", ctypes.pointer(one), 1), kind())
    if mix in importance_mixes.DEFAULTS:
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(kind))
    llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
    code = llama_cpp.llama_model_quantize(str(source).encode(), b"", ctypes.byref(params))
    assert code == 0, b"".join(said).decode()
    types = dict(re.findall(r"\] +(\S+) .*-> .*\((\w+)\)", b"".join(said).decode()))
    found = {}
    for row in model.rows():
        (of_layer,) = {types[name].lower() for name in gguf_names(model, row.name)}
        found[row.name] = of_layer
    return found


def in_runs(types: dict[str, str]) -> dict[str, str]:
    """``{"….#.v_proj": "4*q6_k 3*q4_k"}``: types over the blocks."""
    by_kind: dict[str, list[str]] = {}
    for name, found in types.items():
        by_kind.setdefault(re.sub(r"\.\d+\.", ".#.", name), []).append(found)
    return {
        kind: " ".join(f"{len(list(run))}*{text}" for text, run in itertools.groupby(column))
        for kind, column in by_kind.items()
    }


def main() -> None:
    """Write the table."""
    table: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.gguf"
        for title, model in MODELS.items():
            write_model(model, source)
            table[title] = {m: in_runs(quantised(model, source, m)) for m in DEFAULTS}
            print(title)
    KEPT_IN.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
