"""The compiled kernel gives what the plain path gives, or steps aside and says why."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.measure.weights import compiled_kernel
from engine.measure.weights.compiled_kernel import Fused, variant_for
from engine.measure.weights.reconstruction import compare
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial, normal

BITS = range(2, 9)
FLOAT16, BFLOAT16, FLOAT32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fused]:
    """One set of kernels over small tiles, compiled once for this file, by whichever worker."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers of this run
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "kernels"))
        patch.setattr(compiled_kernel, "TILE", 1 << 13)
        compiled_kernel._compiled.cache_clear()
        found = Fused()
        found.errors(normal(4, 256), parse_format("int4-g128"), FLOAT16)
        if "compile" in found.why:
            pytest.skip(found.why)
        yield found
        compiled_kernel._compiled.cache_clear()


def _same(kernels: Fused, weight: Tensor, text: str, scale_dtype: torch.dtype, what: str) -> None:
    fmt = parse_format(text)
    approx = torch.empty(weight.shape)
    found = kernels.errors(weight, fmt, scale_dtype, approx)
    assert found is not None, (what, text, kernels.why)
    plain = dequantized(weight, fmt, scale_dtype)
    assert torch.equal(approx, plain), (what, text)
    expected = compare(weight, plain)
    for name in ("frobenius", "relative", "max_abs", "mean_abs", "rmse", "sqnr_db"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours == pytest.approx(theirs, rel=2e-6, abs=1e-30), (what, text, name)


@pytest.mark.parametrize(
    ("dtype", "scale_dtype"), [(FLOAT16, FLOAT16), (BFLOAT16, BFLOAT16), (FLOAT32, FLOAT16)]
)
def test_fused_weights_equal_the_plain_ones_bit_for_bit(
    kernels: Fused, dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    for what, weight in adversarial(40, 512).items():
        stored = weight.to(dtype)
        if what == "rows of all magnitudes" or not stored.isfinite().all():
            continue  # scales overflow
        if what == "one huge value" and dtype == FLOAT32:
            stored = stored.clamp(max=800)
        if stored.double().square().mean() < 1e-30:
            assert kernels.errors(stored, parse_format("int4-g128"), scale_dtype) is None, what
            continue  # squares vanish in float32
        for bits in BITS:
            for signs in ("sym", "asym"):
                _same(kernels, stored, f"int{bits}-g128-{signs}", scale_dtype, what)


@pytest.mark.parametrize(
    "text",
    ["int8", "int4-channel", "int6-g64-sym", pytest.param("int4-g32", marks=pytest.mark.soak)],
)
def test_other_groups_and_experts_equal_the_plain_path(kernels: Fused, text: str) -> None:
    _same(kernels, normal(70, 192).to(FLOAT16), text, FLOAT16, "rows")
    _same(kernels, normal(3, 20, 192, seed=1).to(FLOAT16), text, FLOAT16, "experts")


def test_random_weights_of_many_seeds_equal_the_plain_path(kernels: Fused) -> None:
    for seed in range(60):
        weight = (normal(33, 256, seed=seed) * 10.0 ** (seed % 7 - 3)).to(FLOAT16)
        _same(kernels, weight, f"int{2 + seed % 7}-g128", FLOAT16, f"seed {seed}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_to_the_plain_path(
    kernels: Fused, value: float
) -> None:
    weight = normal(200, 256).to(FLOAT16)
    weight[150, 7] = value
    assert kernels.errors(weight, parse_format("int4-g128"), FLOAT16) is None
    assert not kernels.why


def test_a_scale_that_overflows_is_left_to_the_plain_path(kernels: Fused) -> None:
    weight = normal(9, 256)
    weight[3, 4] = 1e9
    assert kernels.errors(weight, parse_format("int4-g128"), FLOAT16) is None
    assert not kernels.why


@pytest.mark.parametrize("text", ["int4-g96", "int4-tensor", "nf4", "fp16", "q8_0", "int4-g8"])
def test_formats_without_a_kernel_are_left_to_the_plain_path(text: str) -> None:
    assert variant_for((8, 256), FLOAT16, parse_format(text), FLOAT16) is None


def test_another_number_of_threads_compiles_nothing(kernels: Fused) -> None:
    from torch._dynamo.utils import counters

    weight, fmt = normal(90, 256).to(FLOAT16), parse_format("int4-g128")
    before = kernels.errors(weight, fmt, FLOAT16)
    compiled = counters["stats"]["unique_graphs"]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert kernels.errors(weight, fmt, FLOAT16) == before
    finally:
        torch.set_num_threads(threads)
    assert counters["stats"]["unique_graphs"] == compiled


def test_with_no_compiler_the_reason_is_told_and_nothing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(compiled_kernel, "TILE", 1 << 12)
    compiled_kernel._compiled.cache_clear()
    torch.compiler.reset()
    kernels = Fused()
    try:
        assert kernels.errors(normal(8, 256), parse_format("int4-g128"), FLOAT16) is None
    finally:
        compiled_kernel._compiled.cache_clear()
        torch.compiler.reset()
    assert "no kernel can be compiled" in kernels.why


def test_a_kernel_that_rounds_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(weight: Tensor, approx: Tensor, *rest: object) -> object:
        sums = compiled_kernel._tile(weight, approx, *rest)  # type: ignore[arg-type]
        approx[7].add_(1e-6)
        return sums

    monkeypatch.setattr(compiled_kernel, "_compiled", lambda: otherwise)
    kernels = Fused()
    assert kernels.errors(normal(8, 256), parse_format("int4-g128"), FLOAT16) is None
    assert "rounds differently" in kernels.why
