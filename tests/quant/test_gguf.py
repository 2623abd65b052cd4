"""GGUF blocks equal those of the gguf package and of llama.cpp, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.grammar import parse_format
from engine.quant import gguf_iq
from engine.quant.gguf import quantize_gguf
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial, normal
from tests.quant.exact_weights import exact_importance, exact_weights

NAMES = [name for name, base in BASES.items() if base.family == "gguf"]
LEGACY = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
WRITTEN = json.loads((Path(__file__).parent / "llama_cpp.json").read_text())
"""Hashes of the blocks that llama.cpp writes, by tests/bench/against_llama_cpp.py."""
MISPLACED = ("iq3_s", "groups of zeros")
"""After a group of zeros llama.cpp writes the groups that follow to where others should be."""


def _kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def _cases() -> dict[str, Tensor]:
    return {name: weight.clamp(-1e3, 1e3) for name, weight in adversarial(12, 512).items()}


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LEGACY)
def test_blocks_of_32_equal_the_gguf_package(name: str, source: torch.dtype) -> None:
    for which, exact in _cases().items():
        weight = exact.to(source) + 0.0  # whether a minimum is 0 or −0 hangs on NumPy's order
        with np.errstate(all="ignore"):
            expected = gguf.quantize(weight.float().numpy(), _kind(name))
        found = quantize_gguf(weight, parse_format(name))
        if "denormal" not in which:  # a float16 scale of 0, where any code stands for 0
            assert torch.equal(found.blocks, torch.from_numpy(expected)), which
        approx = torch.from_numpy(gguf.dequantize(expected, _kind(name)))
        assert torch.equal(dequantized(weight, parse_format(name), torch.float16), approx), which


@pytest.mark.parametrize("name", NAMES)
def test_the_gguf_package_reads_the_same_weight(name: str) -> None:
    for which, weight in _cases().items():
        found = quantize_gguf(weight, parse_format(name))
        read = torch.from_numpy(gguf.dequantize(found.blocks.numpy(), _kind(name)))
        assert read.isfinite().all(), which
        assert torch.equal(found.approx(), read), which


@pytest.mark.parametrize("name", NAMES)
def test_blocks_equal_llama_cpp(name: str) -> None:
    for which, weight in _written_right(name):
        blocks = quantize_gguf(weight, parse_format(name)).blocks
        assert _hash(blocks) == WRITTEN[name][which][0], which


@pytest.mark.parametrize("name", NAMES)
def test_blocks_with_an_importance_matrix_equal_llama_cpp(name: str) -> None:
    for which, weight in _written_right(name):
        found = quantize_gguf(weight, parse_format(name), importance=exact_importance())
        assert _hash(found.blocks) == WRITTEN[name][which][1], which


def _written_right(name: str) -> list[tuple[str, Tensor]]:
    return [each for each in exact_weights().items() if (name, each[0]) != MISPLACED]


@pytest.mark.parametrize("name", gguf_iq.KINDS)
def test_a_group_of_zeros_moves_no_other_group(name: str) -> None:
    weight = exact_weights()["groups of zeros"]
    for importance in (None, exact_importance()):
        found = quantize_gguf(weight, parse_format(name), importance=importance).approx()
        lost = (found - weight).square().sum(1) / weight.square().sum(1)
        assert lost[5] < 1.5 * lost.median()  # the row whose first group of 32 is zeros


@pytest.mark.parametrize("name", [name for name in NAMES if name != "q8_0"])
def test_an_importance_matrix_lowers_the_error_that_it_weighs(name: str) -> None:
    weight, importance = normal(16, 1024), torch.linspace(0.01, 1, 1024) ** 4
    with_it = quantize_gguf(weight, parse_format(name), importance=importance).approx()
    without = quantize_gguf(weight, parse_format(name)).approx()

    def noise(approx: Tensor) -> float:
        return float((importance * (approx - weight).square()).sum())

    assert noise(with_it) < noise(without)


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_beyond_float16_names_the_tensor(name: str) -> None:
    weight = normal(4, 512)
    weight[2, 9] = 3e9
    with pytest.raises(FormatError, match=rf"^blocks\.0\.up: .*float16.*{name}.*3e\+09"):
        dequantized(weight, parse_format(name), torch.bfloat16, name="blocks.0.up")


def _hash(blocks: Tensor) -> str:
    return hashlib.sha256(blocks.numpy().tobytes()).hexdigest()[:32]
