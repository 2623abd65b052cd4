"""Inputs in 8 bits, against compressed-tensors, and channels kept, against bitsandbytes."""

from __future__ import annotations

import math

import bitsandbytes.functional as bnb
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.a8 import quantized_tokens, static_scale
from engine.quant.methods.outlier import outlier_columns, split_outliers
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial, normal

TOKEN = QuantizationArgs(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)


def gathered(inputs: torch.Tensor) -> InputStatistics:
    found = InputStatistics.empty(inputs.shape[-1])
    found.add(inputs)
    return found


def test_tokens_equal_compressed_tensors() -> None:
    for name, inputs in adversarial(20, 96).items():
        if name in ("denormal", "least denormal"):
            continue  # scales below the epsilon of float32 are another matter there
        batch = inputs.view(2, 10, 96)
        scale, zero = compute_dynamic_scales_and_zp(batch, TOKEN, torch.nn.Module())
        expected = fake_quantize(batch, scale, zero, TOKEN)
        assert torch.equal(quantized_tokens(batch), expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_value_moves_further_than_half_a_step(dtype: torch.dtype) -> None:
    inputs = (normal(3, 40, 64) * 100).to(dtype)
    before = inputs.clone()
    found = quantized_tokens(inputs)
    assert found.dtype == dtype
    assert found.shape == inputs.shape
    step = inputs.double().abs().amax(-1, keepdim=True) / 127.5
    slack = torch.finfo(dtype).eps * inputs.double().abs()
    assert ((found.double() - inputs.double()).abs() <= step / 2 * (1 + 1e-5) + slack).all()
    assert torch.equal(inputs, before)
    assert quantized_tokens(inputs[:0]).shape == (0, 40, 64)


def test_one_scale_for_all_tokens_comes_from_calibration() -> None:
    inputs = normal(50, 32)
    scale = static_scale(gathered(inputs).maximum)
    assert float(scale) == pytest.approx(float(inputs.abs().max()) / 127.5)
    found = quantized_tokens(inputs, scale)
    expected = (inputs / scale).clamp(-128, 127).round() * scale
    assert torch.equal(found, expected)
    beyond = quantized_tokens(inputs * 10, scale)
    assert float(beyond.max()) == pytest.approx(127 * float(scale))
    assert torch.equal(quantized_tokens(torch.zeros(2, 4), torch.tensor(0.0)), torch.zeros(2, 4))
    with pytest.raises(FormatError, match="not finite"):
        static_scale(torch.tensor([1.0, math.inf]))


def test_values_that_are_not_finite_pass_and_count_for_no_range() -> None:
    inputs = normal(4, 32)
    inputs[1, 3], inputs[2, 5] = math.nan, -math.inf
    found, clean = quantized_tokens(inputs), quantized_tokens(inputs.nan_to_num(0, 0, 0))
    assert found[1, 3].isnan()
    assert found[2, 5] == -math.inf
    finite = inputs.isfinite()
    assert torch.equal(found[finite], clean[finite])


@pytest.mark.parametrize("threshold", [0.1, 3.0, 6.0, 100.0])
def test_columns_are_those_of_bitsandbytes(threshold: float) -> None:
    inputs = normal(64, 48, seed=2).half() * 20
    inputs[5, 7], inputs[9, 30], inputs[1, 2] = 6.0, -6.0, 5.996
    _, _, expected = bnb.int8_vectorwise_quant(inputs.clone(), threshold=threshold)
    found = outlier_columns(gathered(inputs).maximum, threshold)
    assert expected is not None
    assert torch.equal(found, expected.to(torch.int64))


def test_kept_channels_are_16_bit_and_the_others_as_without_them() -> None:
    inputs, weight = normal(64, 48, seed=3) * 20, normal(8, 48)
    inputs[0, [4, 40]] = 7.0
    weight[:, 4] = 0.7  # which no range counts
    found = split_outliers(weight, gathered(inputs), parse_format("int8+outlier6"), torch.bfloat16)
    assert found.columns.tolist() == [4, 40]
    assert found.kept.dtype == torch.bfloat16
    approx = found.approx()
    assert torch.equal(approx[:, [4, 40]], weight[:, [4, 40]].bfloat16().float())
    rest = weight.clone()
    rest[:, [4, 40]] = 0
    expected = dequantized(rest, parse_format("int8"), torch.bfloat16)
    others = [column for column in range(48) if column not in (4, 40)]
    assert torch.equal(approx[:, others], expected[:, others])


def test_experts_and_no_outliers_at_all() -> None:
    inputs, weight = normal(64, 48), normal(3, 8, 48)
    found = split_outliers(weight, gathered(inputs), parse_format("int8+outlier6"), torch.float16)
    assert found.kept.shape == (3, 8, 0)
    assert torch.equal(found.approx(), dequantized(weight, parse_format("int8"), torch.float16))


def test_what_means_nothing_is_refused() -> None:
    statistics, fmt = gathered(normal(64, 48) * 1000), parse_format("int8+outlier6")
    weight = normal(8, 48)
    for wrong, message in (
        (torch.full_like(weight, math.nan), "NaN or infinite"),
        (weight[:, :40], "40 input channels"),
        (weight * 1e8, "ends at 6.55e\\+04"),
    ):
        with pytest.raises(FormatError, match=f"^up.*{message}"):
            split_outliers(wrong, statistics, fmt, torch.float16, "up")
    with pytest.raises(FormatError, match="no calibration token"):
        split_outliers(weight, InputStatistics.empty(48), fmt, torch.float16)
    with pytest.raises(FormatError, match=r"has no '\+outlier'"):
        split_outliers(weight, statistics, parse_format("int8"), torch.float16)
