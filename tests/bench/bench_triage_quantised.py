"""Triage of a checkpoint of 1 GB in 4 bits, as a user runs it, beside reading its file.

``qtui triage FOLDER --json …`` in a new process with a new state folder; ``cat`` and safetensors'
own ``load_file`` read the same file, each from memory and from the disk, all in one run. Run alone:
``python -m tests.bench.bench_triage_quantised [FOLDER | LAYOUT]``, where ``FOLDER`` is such a
checkpoint, and ``LAYOUT`` the one to build: ``gptq``, which is the default, ``awq`` or ``packed``.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.bench.bench_triage import CONFIG, forget, seconds

HIDDEN, INNER, BLOCKS, VOCABULARY, GROUP = 4096, 11_008, 9, 4_000, 128
ROUNDS = 3
READ = "import sys; from safetensors.torch import load_file; load_file(sys.argv[1])"
Tensors = dict[str, np.ndarray]
LINEARS = (
    ("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", HIDDEN, HIDDEN),
    ("self_attn.v_proj", HIDDEN, HIDDEN), ("self_attn.o_proj", HIDDEN, HIDDEN),
    ("mlp.gate_proj", INNER, HIDDEN), ("mlp.up_proj", INNER, HIDDEN),
    ("mlp.down_proj", HIDDEN, INNER),
)  # fmt: skip


RANDOM = np.random.default_rng(0)


def words(*shape: int) -> np.ndarray:
    return RANDOM.integers(-(1 << 31), 1 << 31, shape, np.int32)


def scales(*shape: int) -> np.ndarray:
    return (RANDOM.random(shape) * 0.01).astype(np.float16)


def gptq(out: int, row: int) -> Tensors:
    return {
        "qweight": words(row // 8, out),
        "qzeros": words(row // GROUP, out // 8),
        "scales": scales(row // GROUP, out),
        "g_idx": (np.arange(row) // GROUP).astype(np.int32),
    }


def awq(out: int, row: int) -> Tensors:
    return {
        "qweight": words(row, out // 8),
        "qzeros": words(row // GROUP, out // 8),
        "scales": scales(row // GROUP, out),
    }


def packed(out: int, row: int) -> Tensors:
    return {
        "weight_packed": words(out, row // 8),
        "weight_scale": scales(out, row // GROUP),
        "weight_zero_point": words(out // 8, row // GROUP),
        "weight_shape": np.array([out, row]),
    }


WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "group_size": GROUP}
LAYOUTS: dict[str, tuple[Callable[[int, int], Tensors], dict[str, Any]]] = {
    "gptq": (gptq, {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False,
        "checkpoint_format": "gptq_v2",
    }),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "packed": (packed, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    }),
}  # fmt: skip
"""The tensors of a layer ``[out, in]`` by name, and the ``quantization_config``."""


def checkpoint(folder: Path, layout: str = "gptq") -> None:
    """A Llama of random codes, 1 GB in one file."""
    make, quantised = LAYOUTS[layout]
    tensors = {
        "model.embed_tokens.weight": RANDOM.random((VOCABULARY, HIDDEN)).astype(np.float16),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    for block in range(BLOCKS):
        at = f"model.layers.{block}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = np.ones(HIDDEN, np.float16)
        for name, out, row in LINEARS:
            tensors |= {f"{at}{name}.{ending}": some for ending, some in make(out, row).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": BLOCKS,
        "vocab_size": VOCABULARY, "num_attention_heads": 32, "num_key_value_heads": 32,
        "tie_word_embeddings": True,
    }  # fmt: skip
    config = {**CONFIG, **sizes, "quantization_config": quantised}
    (folder / "config.json").write_text(json.dumps(config))


def measure(folder: Path, given: str = "gptq") -> None:
    """Build a checkpoint in a layout, or take the one in a folder; run and print."""
    model = Path(given)
    if given in LAYOUTS:
        model = folder / "model"
        model.mkdir()
        checkpoint(model, given)
    file = model / "model.safetensors"
    base = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    base |= {"PWD": str(folder)}
    base |= {f"XDG_{each}_HOME": str(folder / each) for each in ("CACHE", "CONFIG")}
    base.pop("NUMBA_CACHE_DIR", None)
    turn = iter(range(1000))

    def triage() -> float:
        state = {"XDG_STATE_HOME": str(folder / f"state{next(turn)}")}
        qtui = [sys.executable, "-m", "qtui", "triage", str(model)]
        return seconds([*qtui, "--json", str(folder / "triage.json")], base | state)

    def cat() -> float:
        return seconds(["cat", str(file)], base)

    def read() -> float:
        return seconds([sys.executable, "-c", READ, str(file)], base)

    def from_disk(run: Callable[[], float]) -> Callable[[], float]:
        def begun() -> float:
            forget(file)
            return run()

        return begun

    first = triage()  # compiles
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    runs = {"cat": cat, "load_file": read, "qtui triage": triage}
    rows: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            for way, whole in (("from memory", run), ("from the disk", from_disk(run))):
                rows.setdefault(f"{name}, {way}", []).append(whole())
    print(f"\n{file.stat().st_size / 1e9:.2f} GB, {os.cpu_count()} cores")
    print(f"the first time, compiling: {first:.2f} s; at most {peak:.0f} MB resident")
    middles = {name: statistics.median(spent) for name, spent in rows.items()}
    for name, middle in middles.items():
        way = name.partition(", ")[2]
        ratio = middles[f"qtui triage, {way}"] / middle
        print(f"{name:28} median {middle:6.2f} s; triage takes {ratio:.1f} times as long")


def test_triage_of_a_quantised_checkpoint(tmp_path: Path) -> None:
    measure(tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as made:
        measure(Path(made), *sys.argv[1:2])
