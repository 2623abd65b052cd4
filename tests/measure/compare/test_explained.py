"""Mistakes made on purpose are named; weights quantised as they should be have none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.measure.compare.explained import Mistake, explanation
from engine.quant.quantize import dequantized, stored_form
from engine.quant.quantized import Quantized

FORMATS = [
    "int4-g32",
    "int4-g128-sym",
    "int3-g64",
    "int8",
    "nf4",
    "q4_k",
    "q6_k",
    "mxfp4",
    "int2-g64",
]


def weight(seed: int, out: int = 128, row: int = 256) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    sizes = torch.exp(0.4 * torch.randn(out, 1, generator=chance))
    return 0.02 * sizes * torch.randn(out, row, generator=chance)


def quantised(values: Tensor, format: str) -> Tensor:
    return dequantized(values, parse_format(format), torch.float16)


@pytest.mark.parametrize("format", FORMATS)
def test_a_clean_weight_needs_no_explanation(format: str) -> None:
    original = weight(1, 256)
    assert explanation(original, quantised(original, format), heads=8) is None


def test_a_weight_that_has_nothing_to_do_with_it_is_not_explained() -> None:
    assert explanation(weight(2, 256), quantised(weight(3, 256), "int4-g32"), heads=8) is None


def parts(values: Tensor, format: str) -> Quantized:
    stored = stored_form(values, parse_format(format), torch.float16)
    assert isinstance(stored, Quantized)
    return stored


def test_experts_are_told_of_too() -> None:
    experts = torch.stack([weight(seed) for seed in (6, 7, 8)])
    clean = torch.stack([quantised(each, "int4-g32") for each in experts])
    assert explanation(experts, clean) is None
    off = torch.stack([_off(each, "int4-g32", 1.0) for each in experts])
    found = explanation(experts, off)
    assert found is not None
    assert found.mistake == "off-by-one"


def _off(values: Tensor, format: str, by: float) -> Tensor:
    stored = parts(values, format)
    scales = stored.scale.float()
    wide = scales.repeat_interleave(values.shape[1] // scales.shape[1], 1)
    return stored.approx() + by * wide


@pytest.mark.parametrize("format", ["int4-g32", "int4-g128", "int3-g64", "int8"])
@pytest.mark.parametrize("by", [-1.0, 1.0])
def test_zero_points_of_the_other_version(format: str, by: float) -> None:
    original = weight(4)
    found = explanation(original, _off(original, format, by))
    assert found is not None
    assert (found.mistake, found.factor) == ("off-by-one", by)
    clean = (quantised(original, format) - original).norm() / original.norm()
    assert found.relative < 1.2 * float(clean)


def _rotated(values: Tensor, heads: int) -> Tensor:
    # llama.cpp's converter: LlamaModel.permute
    out, row = values.shape
    return values.reshape(heads, 2, out // heads // 2, row).swapaxes(1, 2).reshape(out, row)


def _unrotated(values: Tensor, heads: int) -> Tensor:
    out, row = values.shape
    return values.reshape(heads, out // heads // 2, 2, row).swapaxes(2, 1).reshape(out, row)


MISTAKES: list[tuple[Mistake, object]] = [
    ("scale-factor", lambda w: w * 3.0),
    ("scale-factor", lambda w: w / 440.0),
    ("swapped-codes", lambda w: w.unflatten(1, (-1, 2)).flip(-1).flatten(1)),
    ("permuted-rows", lambda w: _rotated(w, 8)),
    ("permuted-rows", lambda w: _unrotated(w, 8)),
    ("transposed", lambda w: w.T.contiguous()),
]


@pytest.mark.parametrize("format", ["int4-g32", "int8", "q4_k", "nf4"])
@pytest.mark.parametrize(("mistake", "make"), MISTAKES)
def test_a_mistake_is_named(format: str, mistake: Mistake, make: object) -> None:
    original = weight(5, 256)
    assert callable(make)
    found = explanation(original, make(quantised(original, format)), heads=8)
    assert found is not None
    assert found.mistake == mistake


@pytest.mark.parametrize("unlike", [1.0, 0.3])
def test_scales_of_another_layer(unlike: float) -> None:
    """Also where the other layer's rows are of much the same sizes."""
    original = weight(6)
    other = unlike * weight(7) + (1 - unlike) * original
    mine, theirs = (parts(each, "int4-g32-sym") for each in (original, other))
    codes = mine.approx().unflatten(1, (-1, 32)) / mine.scale.float()[..., None]
    wrong = (codes * theirs.scale.float()[..., None]).flatten(1)
    found = explanation(original, wrong)
    assert found is not None
    assert found.mistake == "other-scales"
