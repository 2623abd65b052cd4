"""Ranges found by search: never worse than the whole range, and as good as trying them all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.normal_float import NormalFloat
from engine.quant.quantize import dequantized, stored_form
from engine.quant.quantized import Quantized
from tests.quant.adversarial import adversarial, normal

INTEGER = ["int2-g64", "int3-g32-sym", "int4-g128", "int4-channel", "int4-tensor", "int8-g48"]
FLOAT = ["fp8-e4m3", "fp8-e5m2-tensor", "fp8-e4m3-block128", "mxfp4", "mxfp8", "nvfp4"]
CODEBOOK = ["nf4", "fp4-g128", "nf4:dq", "nf4-g4096"]


def _squares(weight: Tensor, text: str) -> Tensor:
    approx = dequantized(weight, parse_format(text), torch.bfloat16)
    return (approx.double() - weight.double()).square()


@pytest.mark.parametrize("text", [*INTEGER, *FLOAT, *CODEBOOK])
def test_the_squared_error_is_never_above_that_of_rounding(text: str) -> None:
    for name, weight in adversarial(20, 512).items():
        if name == "rows of all magnitudes":
            continue  # beyond the range of some formats
        plain, clipped = _squares(weight, text).sum(), _squares(weight, f"{text}+clip").sum()
        assert clipped <= plain * (1 + 1e-6), name


@pytest.mark.parametrize("text", ["int2-g64", "int3-g32-sym", "int4-g128", "mxfp4", "nvfp4"])
def test_no_group_is_worse_than_rounding(text: str) -> None:
    weight = normal(16, 512, seed=5) ** 3 * 100
    size = parse_format(text).group_size or 1
    plain, clipped = (
        _squares(weight, spelled).view(16, -1, size).sum(-1) for spelled in (text, f"{text}+clip")
    )
    assert (clipped <= plain * (1 + 1e-6)).all()
    assert (clipped < plain * 0.999).any()


@pytest.mark.parametrize(
    ("text", "gain"), [("int2", 0.8), ("int3", 0.95), ("int4-channel", 0.9), ("nvfp4", 0.98)]
)
def test_few_bits_gain_on_normal_weights(text: str, gain: float) -> None:
    weight = normal(64, 1024, seed=6)
    assert _squares(weight, f"{text}+clip").sum() < gain * _squares(weight, text).sum()


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_range_is_the_best_of_all_that_are_tried_one_by_one(symmetric: bool) -> None:
    """Against a loop over groups and ranges in float64, with scales in float16."""
    weight = normal(6, 96, seed=7) ** 3 * 100
    text = "int3-g32-sym+clip" if symmetric else "int3-g32+clip"
    found = (dequantized(weight, parse_format(text), torch.float16).double() - weight).square()
    for row in range(6):
        for start in range(0, 96, 32):
            group = weight[row, start : start + 32].double()
            coarse = [1 - step / 20 for step in range(17)]
            least = min(_error(group, factor, symmetric) for factor in coarse)
            mine = float(found[row, start : start + 32].sum())
            assert mine <= least * (1 + 1e-5)
            fine = [1 - step / 80 for step in range(65)]
            assert mine >= min(_error(group, factor, symmetric) for factor in fine) * (1 - 1e-5)


def _error(group: Tensor, factor: float, symmetric: bool) -> float:
    lo, hi = group.amin().clamp(max=0) * factor, group.amax().clamp(min=0) * factor
    if symmetric:
        scale, zero = torch.maximum(-lo, hi) / 3.5, torch.zeros(())
    else:
        scale = (hi - lo) / 7
        zero = (-4 - lo / scale).round()
    scale = scale.half().double()
    codes = (group / scale + zero).clamp(-4, 3).round()
    return float(((codes - zero) * scale - group).square().sum())


@pytest.mark.parametrize("text", ["int2-g32", "int3-g32-sym", "int4-g32-sym", "nf4-g32"])
def test_an_outlier_is_clamped_where_that_pays(text: str) -> None:
    """One weight somewhat beyond 31 others that lie on both ends of a range."""
    weight = torch.tensor([[1.0, -1.0] * 15 + [0.4, 2.6]]) * 0.1
    found = stored_form(weight, parse_format(f"{text}+clip"), torch.float16)
    plain = stored_form(weight, parse_format(text), torch.float16)
    if isinstance(found, Quantized) and isinstance(plain, Quantized):
        assert found.scale[0, 0] < plain.scale[0, 0]
    else:
        assert isinstance(found, NormalFloat)
        assert isinstance(plain, NormalFloat)
        assert found.absmax[0] < plain.absmax[0]


def test_filling_up_a_short_group_counts_for_nothing() -> None:
    weight = normal(5, 80, seed=8)
    fmt = parse_format("int3-g64+clip")
    alone = dequantized(weight[:, 64:], parse_format("int3-g16+clip"), torch.float16)
    assert torch.equal(dequantized(weight, fmt, torch.float16)[:, 64:], alone)


def test_a_scale_that_overflows_names_the_tensor() -> None:
    weight = normal(4, 256)
    weight[2, 9] = 3e7
    with pytest.raises(FormatError, match=r"^up: .*needs a scale"):
        dequantized(weight, parse_format("int4+clip"), torch.float16, name="up")


def test_magnitudes_whose_squares_overflow_are_only_rounded() -> None:
    weight = normal(4, 256) * 1e30
    plain = dequantized(weight, parse_format("int4"), torch.bfloat16)
    assert torch.equal(dequantized(weight, parse_format("int4+clip"), torch.bfloat16), plain)
