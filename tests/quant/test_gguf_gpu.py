"""Kernels for a GPU are used where they give what the search gives, and nowhere else."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from engine.quant import gguf_gpu
from engine.quant.gguf_search import Symmetric, _refine_symmetric, fit_offsets, refine_symmetric
from tests.quant.adversarial import normal

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_trusted_yet() -> None:
    gguf_gpu._trusted.cache_clear()


def trusted(monkeypatch: pytest.MonkeyPatch, kernel: object) -> object:
    kernels = SimpleNamespace(refine_symmetric=kernel)
    monkeypatch.setattr(gguf_gpu, "_kernels", lambda: kernels)
    return gguf_gpu._trusted("refine_symmetric", _refine_symmetric, CPU, 16, (4,))


def test_a_kernel_with_the_same_bits_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(x: Tensor, half: int) -> Symmetric:
        return _refine_symmetric(x, half)

    assert trusted(monkeypatch, kernel) is kernel


@pytest.mark.parametrize("wrong", ["one bit", "sign of a zero", "fails"])
def test_any_other_kernel_is_refused_and_it_is_said_once(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(x: Tensor, half: int) -> Symmetric:
        scale, codes = _refine_symmetric(x, half)
        if wrong == "fails":
            raise RuntimeError("no such device")
        if wrong == "one bit":
            scale.view(torch.int32)[5] += 1
        else:
            scale[scale == 0] = -0.0
        return Symmetric(scale, codes)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert trusted(monkeypatch, kernel) is None
    (said,) = caplog.records
    assert "step by step" in said.getMessage()


def test_a_processor_asks_for_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_gpu, "_trusted", None)
    x = normal(16, 40)
    assert torch.equal(refine_symmetric(x, 4).codes, _refine_symmetric(x, 4).codes)
    assert fit_offsets(x, x.abs(), 15, -1.0, 0.1, 20, False).codes.shape == x.shape


def test_without_triton_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "engine.quant.gguf_triton", None)
    monkeypatch.delattr("engine.quant.gguf_triton", raising=False)
    with caplog.at_level(logging.WARNING):
        assert gguf_gpu._kernels.__wrapped__() is None
    assert "step by step" in caplog.text


INTERPRETED = """
import torch
from engine.quant import gguf_gpu as g, gguf_search as s
whole, x = g._sample, torch.device("cpu")
g._sample = lambda n: whole(n, 4)
numbers = tuple(s.candidates(-0.5, 0.1, 3, range(4)))
assert g._trusted("fit_offsets", s._fit_offsets, x, 16, (3, numbers, True))
assert g._trusted("fit_offsets", s._fit_offsets, x, 32, (15, numbers, False))
few = tuple(s.symmetric_candidates(32)[:4])
assert g._trusted("fit_symmetric", s._fit_symmetric, x, 16, (32, few))
assert g._trusted("refine_symmetric", s._refine_symmetric, x, 16, (4,))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton here")
def test_kernels_give_the_same_bits_where_triton_interprets_them() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True, timeout=900)
