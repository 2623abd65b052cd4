"""GPTQ of one layer, beside reference implementations: seconds, and what is left of the output.

``int4-g128`` of 4096 × 4096, two threads, by turns in one run, each in a process of its own on the
same weight and the same ``X Xᵀ``. The paper's loop is always there; for others say which Python has
them: ``GPTQ_REFERENCES="llmcompressor=/path/to/python gptqmodel=/path/to/python"``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.quant.input_statistics import output_error
from engine.quant.quantize import dequantized
from engine.service.process import SPINS

WIDTH = int(os.environ.get("GPTQ_WIDTH", "4096"))
ROUNDS = int(os.environ.get("GPTQ_ROUNDS", "5"))
TOKENS = 2 * WIDTH
THREADS = 2
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPINS}
"""How threads wait in the engine; without it others on the machine decide what is measured."""


def layer() -> tuple[Tensor, Tensor]:
    """A weight, and ``X Xᵀ`` of inputs that share directions and differ in size."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(WIDTH, WIDTH, generator=generator) * 0.02).half()
    mixed = torch.randn(WIDTH // 16, WIDTH, generator=generator) / 8
    size = torch.rand(WIDTH, generator=generator) + 0.5
    gram = torch.zeros(WIDTH, WIDTH)
    for _ in range(TOKENS // 1024):
        own = torch.randn(1024, WIDTH, generator=generator)
        inputs = (own + torch.randn(1024, WIDTH // 16, generator=generator) @ mixed) * size
        gram.addmm_(inputs.T, inputs)
    return weight, gram


def start(name: str, python: str, folder: Path) -> subprocess.Popen[str]:
    script = str(Path(__file__).with_name("against_gptq.py"))
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [python, "-W", "ignore", script, name, str(folder), str(THREADS)],
        env={**os.environ, **WAITING, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def seconds(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Seconds of one solution, and those of processors, once the process is told to find it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("once\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("seconds "):
            _, wall, used = line.split()
            return float(wall), float(used)
    raise RuntimeError(f"{process.args} ended with {process.wait()}")


def test_gptq(tmp_path: Path) -> None:
    torch.set_num_threads(THREADS)
    weight, gram = layer()
    torch.save(weight, tmp_path / "weight.pt")
    torch.save(gram, tmp_path / "gram.pt")
    (tmp_path / "tokens").write_text(str(TOKENS))
    pythons = {"ours": sys.executable, "paper": sys.executable}
    pythons |= dict(pair.split("=") for pair in os.environ.get("GPTQ_REFERENCES", "").split())
    processes = {name: start(name, python, tmp_path) for name, python in pythons.items()}
    spent: dict[str, list[float]] = {name: [] for name in processes}
    used: dict[str, list[float]] = {name: [] for name in processes}
    loads = []
    try:
        for _ in range(ROUNDS):  # each has solved a small layer before
            for name, process in processes.items():
                found, of_processors = seconds(process)
                spent[name].append(found)
                used[name].append(of_processors)
                print(f"{name} {found:.2f} s, of processors {of_processors:.2f} s", flush=True)
            loads.append(psutil.getloadavg()[0])
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    plain = output_error(
        dequantized(weight, parse_format("int4-g128"), torch.float16) - weight.float(), gram
    )
    print(f"\n{WIDTH} x {WIDTH}, {THREADS} threads, {ROUNDS} rounds, load {loads}")
    for name, times in spent.items():
        approx = torch.load(tmp_path / f"{name}.pt")
        error = output_error(approx - weight.float(), gram) / plain
        ratios = [mine / other for mine, other in zip(spent["ours"], times, strict=True)]
        print(
            f"{name:14} least {min(times):6.2f} s, median {statistics.median(times):6.2f} s, "
            f"of processors {min(used[name]):.2f} s, output error {error:.4f} of rounding; "
            f"ours takes {min(spent['ours']) / min(times):.2f} (least), "
            f"{statistics.median(ratios):.2f} (median; {min(ratios):.2f} to {max(ratios):.2f}) "
            "of its time"
        )
