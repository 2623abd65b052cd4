"""The compiled K-quants and iq4 against the searches step by step: the same bytes, every one."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant import gguf, gguf_compiled, gguf_iq
from engine.quant.gguf import quantize_gguf
from engine.quant.gguf_compiled import NAMES, encode
from tests.quant.adversarial import adversarial, normal

MINUTES = 200.0


def _mixed_zeros(weight: Tensor) -> Tensor:
    """Some zeros made negative."""
    some = torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    return torch.where(some & (weight == 0), -0.0, weight)


def _cases() -> dict[str, Tensor]:
    found = {name: weight.clamp(-1e3, 1e3) for name, weight in adversarial(12, 512).items()}
    found["zeros of both signs"] = _mixed_zeros(torch.zeros(12, 512))
    found["zeros of both signs, positive"] = _mixed_zeros(normal(12, 512, seed=21).clamp(min=0))
    found["many"] = normal(150, 1024, seed=22)  # more than a thread, and a strip that is not full
    return found


def _step_by_step(weight: Tensor, name: str, importance: Tensor | None = None) -> Tensor:
    encoded = [gguf.TYPES[name].encode(tile, importance) for tile in gguf._tiles(weight)]
    return torch.cat(encoded)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_search(name: str) -> None:
    for which, weight in _cases().items():
        found = encode(weight, parse_format(name), MINUTES)
        assert found is not None
        expected = _step_by_step(weight, name)
        differ = (found != expected).any(1).sum()
        assert found.shape == expected.shape
        assert not differ, f"{which}: {differ} of {len(found)} blocks"


@pytest.mark.parametrize("name", gguf_iq.KINDS)
def test_bytes_with_an_importance_matrix_are_those_of_the_search(name: str) -> None:
    importance = torch.linspace(0, 1, 1024) ** 4
    importance[512:544] = 0
    weight = normal(40, 1024, seed=23)
    found = encode(weight, parse_format(name), MINUTES, importance)
    assert found is not None
    assert torch.equal(found, _step_by_step(weight, name, importance))


def test_a_kernel_without_an_importance_matrix_is_not_used_for_one() -> None:
    assert encode(normal(4, 512), parse_format("q4_k"), MINUTES, torch.ones(512)) is None


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_threads_nor_on_strides(threads: int) -> None:
    weight, before = normal(512, 40, seed=3), torch.get_num_threads()
    expected = _step_by_step(weight.T, "q4_k")
    torch.set_num_threads(threads)
    try:
        found = encode(weight.T, parse_format("q4_k"), MINUTES)
    finally:
        torch.set_num_threads(before)
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_beyond_float16_is_refused_as_before(name: str) -> None:
    for greatest in (3e9, 3e38):
        weight = normal(4, 512)
        weight[2, 9] = greatest
        assert encode(weight, parse_format(name), MINUTES) is not None  # the kernel is there
        with pytest.raises(FormatError, match=r"^blocks\.0\.up: .*float16"):
            quantize_gguf(weight, parse_format(name), name="blocks.0.up")


def test_without_numba_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "engine.quant.gguf_kernels", None)
    monkeypatch.delattr("engine.quant.gguf_kernels", raising=False)
    monkeypatch.setattr(gguf_compiled, "_compiling", gguf_compiled.cache(_compiling_anew))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            blocks = quantize_gguf(normal(4, 512), parse_format("q4_k")).blocks
    assert torch.equal(blocks.view(-1, 144), _step_by_step(normal(4, 512), "q4_k"))
    (said,) = caplog.records
    assert "step by step" in said.getMessage()


def test_nobody_waits_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    never: gguf_compiled.Future[None] = gguf_compiled.Future()
    monkeypatch.setattr(gguf_compiled, "_compiling", lambda _: never)
    assert encode(normal(4, 512), parse_format("q4_k"), 0.0) is None


def _compiling_anew(entry: str) -> object:
    return gguf_compiled._compiler().submit(gguf_compiled._compiled, entry)
