"""Triage of a checkpoint of 1 GB, as a user runs it: whole commands, one after the other.

``qtui triage FOLDER --formats … --json …`` in a new process with a new state folder, beside a
script of the plainest PyTorch functions for the same figures, and beside reading the file with
``cat``, from the disk and from memory. Run alone: ``python -m
tests.bench.bench_triage [FOLDER]``, where ``FOLDER`` is such a checkpoint already.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, BLOCKS, VOCABULARY = 2048, 5632, 9, 32_000
FORMATS = "int4-g128,int4-g32,int8,int3-g128"
ROUNDS = 3
PLAIN = Path(__file__).with_name("plain_triage.py")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_hidden_layers": BLOCKS, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
}  # fmt: skip


def checkpoint(folder: Path) -> None:
    """A Llama of random float16 weights, 1.07 GB in one file."""
    random = np.random.default_rng(0)

    def weight(out: int, row: int) -> np.ndarray:
        return (random.standard_normal((out, row), np.float32) * 0.02).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": weight(VOCABULARY, HIDDEN),
        "lm_head.weight": weight(VOCABULARY, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    for block in range(BLOCKS):
        at = f"model.layers.{block}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = np.ones(HIDDEN, np.float16)
        for name, out, row in (
            ("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", HIDDEN // 4, HIDDEN),
            ("self_attn.v_proj", HIDDEN // 4, HIDDEN), ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN), ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ):  # fmt: skip
            tensors[f"{at}{name}.weight"] = weight(out, row)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def forget(file: Path) -> None:
    """Drop a file from the system's memory, so that it is read from the disk again."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(command: list[str], environment: Mapping[str, str]) -> float:
    """How long a command takes; it must succeed."""
    begun = time.perf_counter()
    subprocess.run(
        command, env=dict(environment), check=True, cwd=environment["PWD"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begun


def measure(folder: Path, model: Path | None = None) -> None:
    """Build a checkpoint unless there is one, run and print."""
    if model is None:
        model = folder / "model"
        model.mkdir()
        checkpoint(model)
    file = model / "model.safetensors"
    size = file.stat().st_size
    root = str(Path(__file__).resolve().parents[2])
    base = {**os.environ, "PYTHONPATH": root, "PWD": str(folder)}
    base.update({f"XDG_{each}_HOME": str(folder / each) for each in ("CACHE", "CONFIG")})
    base.pop("NUMBA_CACHE_DIR", None)
    turn = iter(range(1000))

    def triage() -> float:
        state = {"XDG_STATE_HOME": str(folder / f"state{next(turn)}")}
        qtui = [sys.executable, "-m", "qtui", "triage", str(model), "--formats", FORMATS]
        return seconds([*qtui, "--json", str(folder / "triage.json")], {**base, **state})

    def cat() -> float:
        return seconds(["cat", str(file)], base)

    def plain() -> float:
        return seconds([sys.executable, str(PLAIN), str(file)], base)

    def from_disk(run: Callable[[], float]) -> float:
        forget(file)
        return run()

    first = triage()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    rows: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in (
            ("cat, from memory", cat),
            ("cat, from the disk", lambda: from_disk(cat)),
            ("qtui triage, from memory", triage),
            ("qtui triage, from the disk", lambda: from_disk(triage)),
        ):
            rows.setdefault(name, []).append(run())
            print(f"{name}: {rows[name][-1]:.2f} s", flush=True)
    rows["plain PyTorch, from memory"] = [plain()]
    ours = statistics.median(rows["qtui triage, from memory"])
    print(f"\n{size / 1e9:.2f} GB of float16, {FORMATS}, {os.cpu_count()} cores")
    print(f"qtui triage the first time, compiling: {first:.2f} s; at most {peak:.0f} MB resident")
    for name, spent in rows.items():
        middle = statistics.median(spent)
        print(
            f"{name:28} median {middle:6.2f} s, {min(spent):6.2f} to {max(spent):6.2f}"
            f"   {middle / ours:6.2f} of ours from memory"
        )
    middles = {name: statistics.median(spent) for name, spent in rows.items()}
    slower = middles["plain PyTorch, from memory"] / ours
    reading = middles["qtui triage, from the disk"] / middles["cat, from the disk"]
    print(
        f"plain / ours {slower:.1f}, aim 10; ours / cat, both from the disk, {reading:.1f}, aim 4"
    )


def test_triage(tmp_path: Path) -> None:
    measure(tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as made:
        measure(Path(made), Path(sys.argv[1]) if sys.argv[1:] else None)
