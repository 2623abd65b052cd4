"""What a GPU runs, run on the CPU by the same code: facts are those of the plain path."""

from __future__ import annotations

import math

import pytest
import torch

from engine import protocol as p
from engine.formats.grammar import parse_format
from engine.measure.weights import measuring, on_device, triage
from engine.measure.weights.on_device import compared, device_errors, moved
from engine.measure.weights.plain import plain_error
from engine.measure.weights.reconstruction import compare
from tests.measure.weights.test_triage_paths import MISSING, opened, run, same, store
from tests.quant.adversarial import normal

__all__ = ["store"]

FORMATS = ("int4-g32", "int8-tensor", "nf4-g64", "fp8-e4m3", "q8_0", "mxfp4")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_facts_are_those_of_the_plain_path(dtype: torch.dtype) -> None:
    formats = [parse_format(text) for text in FORMATS]
    for shape in ((40, 256), (3, 8, 64)):
        weight = normal(*shape).to(dtype)
        found = list(device_errors(weight, formats, "float16", "up", "cpu"))
        for fact, fmt in zip(found, formats, strict=True):
            same(fact, plain_error(weight, fmt, "float16", "up"), fact.format)


def test_a_scale_that_overflows_is_a_reason_and_the_others_go_on() -> None:
    weight = torch.full((4, 64), 1e9)
    formats = [parse_format("int4-g32"), parse_format("nf4-g64")]
    refused, held = device_errors(weight, formats, "float16", "up", "cpu")
    assert "needs a scale of" in refused.refused
    assert held.error is not None


def test_a_weight_arrives_whole_through_small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "TILE_BYTES", 100)
    weight = normal(17, 33).to(torch.bfloat16)
    there = moved(weight, torch.device("cpu"))
    assert torch.equal(there, weight)
    assert there.data_ptr() != weight.data_ptr()
    assert torch.equal(moved(weight.T, torch.device("cpu")), weight.T)


def test_values_that_are_not_finite_are_left_out_and_a_nan_in_the_approximation_is_not() -> None:
    weight = normal(8, 64)
    weight[3, 5], weight[4, 6] = math.nan, math.inf
    approx = weight + 0.01
    same(compared(weight, approx).fact, compare(weight, approx).fact, "not finite")
    approx[0, 0] = math.nan
    assert math.isnan(compared(weight, approx).max_abs)


def test_triage_with_a_device_finds_what_it_finds_without(
    tmp_path_factory: pytest.TempPathFactory, store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("model")
    for module in (triage, measuring):
        monkeypatch.setattr(module, "kernels", lambda: MISSING)
    checkpoint = opened("llama", torch.float16, folder, store)  # type: ignore[arg-type]
    without, _ = run(checkpoint)
    used: list[str] = []

    def as_if(asked: str) -> str:
        used.append(asked)
        return "cpu"

    monkeypatch.setattr(measuring, "gpu", as_if)
    found, _ = run(checkpoint)
    assert len(used) == len(checkpoint.rows)
    for key, fact in found.items():
        same(fact, without[key], str(fact)[:60])


def test_a_full_device_is_said_and_the_cpu_measures(
    tmp_path_factory: pytest.TempPathFactory, store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("model")

    def full(*_given: object) -> torch.device:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(on_device, "moved", full)
    monkeypatch.setattr(measuring, "gpu", lambda asked: "cuda")
    checkpoint = opened("llama", torch.float16, folder, store)  # type: ignore[arg-type]
    found, said = run(checkpoint)
    assert len(said) == len(checkpoint.rows)
    assert all("does not fit on cuda: measured on the CPU" in sentence for sentence in said)
    errors = [fact for fact in found.values() if isinstance(fact, p.LayerError)]
    assert errors
    assert all(fact.error is not None for fact in errors)
