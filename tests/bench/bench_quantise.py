"""Quantise, dequantise and five error figures: plain PyTorch, in row chunks, one compiled kernel.

A weight of 4096 × 11008 in half precision, ``int4-g128``; every ratio is within this run. Ŵ is
made of a tile at a time by the kernel, of a few rows in chunks, whole by the plain expression.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.measure.weights import compiled_kernel
from engine.measure.weights.compiled_kernel import Fused
from engine.measure.weights.reconstruction import compare, weight_errors
from engine.measure.weights.triage import CHUNK
from engine.quant.quantize import dequantized

ROUNDS = 9
SHAPE = (4096, 11008)
TEXT = "int4-g128"
FORMAT = parse_format(TEXT)

FIRST_USE = """
import json, sys, time
import torch
from engine.measure.weights.compiled_kernel import Fused
from engine.formats.grammar import parse_format
weight = torch.zeros(16, 11008, dtype=torch.float16)
begun = time.perf_counter()
kernels = Fused()
found = kernels.errors(weight, parse_format("int4-g128"), torch.float16)
print(json.dumps([time.perf_counter() - begun, found is not None, kernels.why]))
"""


def straightforward(weight: Tensor) -> tuple[float, ...]:
    """What one writes down first: whole tensors in float32, one expression after the other."""
    x = weight.float().unflatten(1, (-1, 128))
    lo = x.amin(-1, keepdim=True).clamp(max=0)
    hi = x.amax(-1, keepdim=True).clamp(min=0)
    scale = (hi - lo) / 15
    zero_point = (-8 - lo / scale).clamp(-8, 7).round()
    scale = scale.to(torch.float16).float()
    codes = (x / scale + zero_point).clamp(-8, 7).round()
    approx = (codes - zero_point) * scale
    gap = approx - x
    return (
        float(gap.norm()),
        float(gap.norm() / x.norm()),
        float(gap.abs().max()),
        float(gap.abs().mean()),
        float(10 * torch.log10(x.square().sum() / gap.square().sum())),
    )


def in_chunks(weight: Tensor) -> object:
    """The path without a compiler."""
    rows = CHUNK // weight.shape[1]
    return weight_errors(weight, lambda part: dequantized(part, FORMAT, torch.float16), rows)


def interleaved(*runs: Callable[[], object]) -> list[list[float]]:
    """Seconds of each, in turn, so that a busy machine is one for all."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 1):
        for run, spent in zip(runs, seconds, strict=True):
            begun = time.perf_counter()
            run()
            if turn:
                spent.append(time.perf_counter() - begun)
    return seconds


def first_use(cache: Path) -> tuple[float, bool, str]:
    """Seconds from nothing compiled to the first figures in a new process, torch imported."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIRST_USE],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, found, why = json.loads(done.stdout.splitlines()[-1])
    return seconds, found, why


def test_quantise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    cold, found, why = first_use(tmp_path / "kernels")
    warm, *_ = first_use(tmp_path / "kernels")
    print()
    print(f"first use, nothing on disk {cold:5.1f} s   aim: under 15 s")
    print(f"first use, kernel on disk  {warm:5.1f} s")
    if not found:
        print(f"no kernel: {why}")
    weight = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.05).half()
    kernels = Fused()
    one = kernels.errors(weight, FORMAT, torch.float16)
    other = compare(weight, dequantized(weight, FORMAT, torch.float16))
    print(f"by the kernel {one}")
    print(f"in row chunks {other}")
    print(f"load of the machine {psutil.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    plain, chunks, kernel = interleaved(
        lambda: straightforward(weight),
        lambda: in_chunks(weight),
        lambda: kernels.errors(weight, FORMAT, torch.float16),
    )
    base = statistics.median(plain)
    for name, seconds, aim in (
        ("whole tensors", plain, ""),
        ("row chunks", chunks, "aim: 1.8 ×"),
        ("one kernel", kernel, "aim: 15 ×"),
    ):
        middle = statistics.median(seconds)
        ratios = [a / b for a, b in zip(plain, seconds, strict=True)]
        print(
            f"{name:14} median {middle * 1e3:7.1f} ms, least {min(seconds) * 1e3:7.1f}"
            f"   {base / middle:5.1f} × (by rounds {min(ratios):.1f} to {max(ratios):.1f})   {aim}"
        )
    tiles = 4 * compiled_kernel.TILE + 2 * compiled_kernel.TILE
    print(
        f"memory of the kernel: two tiles, {tiles / 2**20:.0f} MiB (weight {weight.nbytes >> 20})"
    )
