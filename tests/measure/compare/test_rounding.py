"""How a stored weight follows from its original, told from the two alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.measure.compare.folded import of_norms, scales, spread
from engine.measure.compare.rounding import grid_of
from engine.quant.methods.gptq import gptq
from engine.quant.quantize import dequantized


def weight(seed: int, out: int = 128, row: int = 512) -> Tensor:
    return 0.02 * torch.randn(out, row, generator=torch.Generator().manual_seed(seed))


def quantised(values: Tensor, format: str, dtype: torch.dtype = torch.float16) -> Tensor:
    return dequantized(values, parse_format(format), dtype)


ROUNDED = [
    *("int4-g128", "int4-g32", "int4-g64-sym", "int3-g128", "int2-g64", "int8", "nf4", "fp4"),
    *("q4_k", "q6_k", "q4_0", "q8_0", "q5_1", "mxfp4", "fp8-e4m3"),
]


@pytest.mark.parametrize("format", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_the_nearest_level_is_known_as_such(format: str, dtype: torch.dtype) -> None:
    original = weight(1).to(dtype)
    found = grid_of(original, quantised(original, format, dtype))
    assert found.rounding == "nearest", found


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_values_kept_in_16_bits_are_still_on_their_grid(stored: torch.dtype) -> None:
    original = weight(2).to(stored)
    found = grid_of(original, quantised(original, "int4-g128", stored).to(stored))
    assert found.rounding == "nearest", found


@pytest.mark.parametrize("format", ["int4-g128", "int3-g128", "int8"])
@pytest.mark.parametrize("order", [False, True])
def test_a_solver_displaces_weights_by_parts_of_a_step(format: str, order: bool) -> None:
    original = weight(3)
    inputs = torch.randn(2048, 512, generator=torch.Generator().manual_seed(4))
    inputs = inputs @ torch.randn(512, 512, generator=torch.Generator().manual_seed(5)) / 22
    hessian = inputs.T @ inputs
    fmt = parse_format(f"{format}+gptq" + (":actorder" if order else ""))
    solved: Any = gptq(original, hessian, fmt, torch.float16, "w")
    found = grid_of(original, solved.approx(), solved.order)
    assert found.rounding == "solved", found
    assert found.displaced > 0.01  # of levels that occur beside it: few in 8 bits


def test_weights_of_a_close_parent_are_displaced_near_ties_alone() -> None:
    original = weight(6)
    tuned = original + 0.0002 * torch.randn(
        original.shape, generator=torch.Generator().manual_seed(7)
    )
    found = grid_of(original, quantised(tuned, "int4-g128"))
    assert found.rounding == "other", found
    assert 0 < found.displaced < 0.1


def test_weights_of_another_layer_err_by_more_than_a_step() -> None:
    found = grid_of(weight(8), quantised(weight(9), "int4-g128"))
    assert found.rounding == "other", found
    assert found.steps > 1.2


def test_what_is_the_same_is_said_to_be() -> None:
    original = weight(10).half()
    assert grid_of(original, original.float()).rounding == "same"
    zero = torch.zeros(4, 64)
    assert grid_of(zero, zero).rounding == "same"
    assert grid_of(weight(11), torch.zeros(128, 512)).rounding == "other"


@pytest.mark.parametrize("format", ["int4-g128", "int8", "nf4"])
def test_folded_scales_are_found_and_the_rounding_behind_them(format: str) -> None:
    original = weight(12)
    scale = torch.exp(0.5 * torch.randn(512, generator=torch.Generator().manual_seed(13)))
    stored = quantised(original * scale, format)
    found = scales(original, stored)
    assert found is not None
    assert spread(found) > 3
    assert float((found / scale).log().abs().median()) < 0.01
    assert grid_of(original, stored).rounding != "nearest"
    by_norm = of_norms(torch.ones(512), (1 / scale).half())
    assert by_norm is not None
    assert float((by_norm / scale - 1).abs().max()) < 1e-3
    assert grid_of(original * scale, stored).rounding == "nearest"
    assert of_norms(scale, scale) is None


@pytest.mark.parametrize("format", ["int2-g64", "int3-g128", "int4-g128", "int8", "q2_k"])
@pytest.mark.parametrize("outlier", [1, 30])
def test_rounding_alone_is_no_scale(format: str, outlier: float) -> None:
    original = weight(14, out=96)
    original[:, 7::64] *= outlier
    assert scales(original, quantised(original, format)) is None
