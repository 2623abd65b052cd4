"""K-quants and iq types of one weight: compiled and searched for step by step, by turns.

4096 × 4096 in float32, to bytes and back, two threads; what is quantised step by step is a quarter
of the rows, its seconds told for all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.quant import gguf, gguf_compiled
from engine.quant.quantize import dequantized

WIDTH, ROUNDS, PART = 4096, 3, 4


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@pytest.mark.parametrize("name", gguf_compiled.NAMES)
def test_quantised_and_read_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    fmt = parse_format(name)
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02
    assert gguf_compiled.encode(weight[:1], fmt, 200) is not None  # compiled

    def compiled() -> Tensor:
        return dequantized(weight, fmt, torch.float16)

    def step_by_step() -> Tensor:
        with monkeypatch.context() as patched:
            patched.setattr(gguf.gguf_compiled, "encode", lambda *_, **__: None)
            return dequantized(weight[: WIDTH // PART], fmt, torch.float16)

    assert torch.equal(compiled()[: WIDTH // PART], step_by_step())
    turns = [(seconds(compiled), PART * seconds(step_by_step)) for _ in range(ROUNDS)]
    ours, before = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"\n{name}: {ours:.2f} s, step by step {before:.2f} s: {before / ours:.1f} times")
