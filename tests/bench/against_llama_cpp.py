"""Compare our GGUF blocks with those of llama.cpp's own quantiser, and keep what it wrote.

Not run with the tests: it needs ``libggml-base.so``, built in seconds from the source package,

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
    mkdir build && echo 'cmake_minimum_required(VERSION 3.14)
    project(scratch C CXX)
    add_subdirectory(../llama_cpp_python-0.3.36/vendor/llama.cpp/ggml ggml)' > build/CMakeLists.txt
    cmake -S build -B build/out -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_CPU=OFF \
        -DBUILD_SHARED_LIBS=ON
    cmake --build build/out --target ggml-base

and then, in the root of the repository,

    python -m tests.bench.against_llama_cpp build/out/ggml/src/libggml-base.so

writes ``tests/quant/llama_cpp.json``, hashes of its blocks that the tests compare ours with, and
``tests/bench/against_llama_cpp.md``, the ratios of squared errors; with ``--speed`` it prints how
long the importance types take instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.formats.catalogue import BASES
from engine.formats.grammar import parse_format
from engine.quant import gguf_compiled, gguf_iq
from engine.quant.gguf import quantize_gguf
from tests.quant.exact_weights import exact_importance, exact_weights

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for name, base in BASES.items() if base.family == "gguf"]


def load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        pointer,
        pointer,
        size,
        size,
        size,
        pointer,
    ]
    return library


def blocks(
    library: ctypes.CDLL, weight: Tensor, name: str, importance: Tensor | None
) -> np.ndarray:
    """What llama.cpp writes for ``[out, in]``, uint8 ``[out, bytes]``.

    A type that it does not quantise without an importance matrix gets one of ones.
    """
    kind = gguf.GGMLQuantizationType[name.upper()]
    if importance is None and library.ggml_quantize_requires_imatrix(int(kind)):
        importance = torch.ones(weight.shape[1])
    size, length = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = weight.shape
    source = np.ascontiguousarray(weight.numpy())
    given = None if importance is None else np.ascontiguousarray(importance.numpy())
    out = np.zeros((rows, columns // size * length), np.uint8)
    written = library.ggml_quantize_chunk(
        int(kind),
        source.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        columns,
        None if given is None else given.ctypes.data,
    )
    assert written == out.nbytes
    return out


def ratio(library: ctypes.CDLL, weight: Tensor, name: str, importance: Tensor | None) -> float:
    """Our root mean square error over that of llama.cpp, errors weighted by importance."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    theirs = torch.from_numpy(gguf.dequantize(blocks(library, weight, name, importance), kind))
    ours = quantize_gguf(weight, parse_format(name), importance=importance).approx()
    weighing = torch.ones(weight.shape[1]) if importance is None else importance
    noise = [(weighing * (approx - weight).double().square()).sum() for approx in (ours, theirs)]
    return math.sqrt(noise[0] / noise[1])


def real(limit: int = 24) -> list[Tensor]:
    """Weights of the bundled checkpoint that take blocks of 256."""
    tensors: dict[str, Tensor] = {}
    for path in sorted((ROOT / "engine" / "demo").rglob("*.safetensors")):
        tensors |= load_file(path)
    held = [t.float() for t in tensors.values() if t.dim() == 2 and t.shape[1] % 256 == 0]
    assert held, "no checkpoint in engine/demo"
    return held[:limit]


def speed(path: str, rounds: int = 3) -> None:
    """Print our seconds beside llama.cpp's, of the types that a grid makes slow, by turns.

    512 × 2048 weights with an importance matrix, one thread each, the least of the rounds.
    """
    library = load(path)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 2048, generator=generator) * 0.02
    importance = torch.rand(2048, generator=generator) + 0.01
    for name in gguf_iq.KINDS:
        fmt = parse_format(name)
        assert gguf_compiled.encode(weight[:1], fmt, 200) is not None  # compiled
        turns = []
        for _ in range(rounds):
            began = time.perf_counter()
            blocks(library, weight, name, importance)
            between = time.perf_counter()
            gguf_compiled.encode(weight, fmt, importance=importance)
            turns.append((between - began, time.perf_counter() - between))
        theirs, ours = (min(column) for column in zip(*turns, strict=True))
        print(f"{name}: llama.cpp {theirs:.2f} s, qtui {ours:.2f} s: {theirs / ours:.2f} times")


def main(path: str) -> None:
    library = load(path)
    kept: dict[str, dict[str, list[str]]] = {}
    for name in NAMES:
        kept[name] = {}
        for case, weight in exact_weights().items():
            found = [blocks(library, weight, name, given) for given in (None, exact_importance())]
            kept[name][case] = [hashlib.sha256(each.tobytes()).hexdigest()[:32] for each in found]
    target = ROOT / "tests" / "quant" / "llama_cpp.json"
    target.write_text(json.dumps(kept, indent=1) + "\n")

    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(256, 2048, generator=generator) * 0.05
    sources = {"normal": [normal], "heavy-tailed": [normal**3 * 100], "demo": real()}
    lines = [
        "Root mean square error of `engine.quant.gguf` over that of llama.cpp's quantiser",
        "(`ggml_quantize_chunk` of llama-cpp-python 0.3.36, x86-64 without `-march=native`), made",
        "by `tests/bench/against_llama_cpp.py`: 256 × 2048 normal weights, their cubes, and",
        f"{len(sources['demo'])} layers of the bundled checkpoint (the least and greatest ratio).",
        "With an importance matrix errors are weighted by it; `iq2_xs` and `iq2_xxs`, which",
        "llama.cpp quantises with one only, get one of ones where there is none.",
        "",
        "| type | " + " | ".join(f"{s}, {m}" for s in sources for m in ("plain", "matrix")) + " |",
        "|---" * (1 + 2 * len(sources)) + "|",
    ]
    for name in NAMES:
        cells = []
        for weights in sources.values():
            for informed in (False, True):
                ratios = []
                for weight in weights:
                    given = torch.rand(weight.shape[1], generator=generator) + 0.01
                    ratios.append(ratio(library, weight, name, given if informed else None))
                ends = sorted({f"{min(ratios):.6f}", f"{max(ratios):.6f}"})
                cells.append("–".join(ends))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    (ROOT / "tests" / "bench" / "against_llama_cpp.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    speed(sys.argv[1]) if "--speed" in sys.argv else main(sys.argv[1])
