"""AWQ and SmoothQuant: one scale for weights that share an input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.input_statistics import InputStatistics
from engine.quant.methods.a8 import quantized_tokens
from engine.quant.methods.awq import STEPS, awq, awq_scale
from engine.quant.methods.channel_scales import folded, unfolded
from engine.quant.methods.smooth import smooth, smooth_scale
from engine.quant.quantize import dequantized
from tests.quant.adversarial import normal


def inputs_with_outliers(width: int, seed: int, tokens: int = 300) -> Tensor:
    inputs = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    inputs[:, seed % 7 :: 37] *= 30
    inputs[:, 3] = 0  # a channel that is always 0
    return inputs


def gathered(inputs: Tensor) -> InputStatistics:
    found = InputStatistics.empty(inputs.shape[-1])
    found.add(inputs)
    return found


def _output_error(weights: list[Tensor], inputs: Tensor, approx: list[Tensor]) -> float:
    x = inputs.double()
    pairs = zip(weights, approx, strict=True)
    return sum(float((x @ (a.double() - w.double()).T).square().sum()) for w, a in pairs)


@pytest.mark.parametrize(
    "text", ["int4-g32+awq", "int3-g128+awq", "int4-channel+awq+clip", "nf4+awq"]
)
@pytest.mark.parametrize("seed", range(4))
def test_awq_is_never_above_rounding_and_tells_the_error_of_the_outputs(
    text: str, seed: int
) -> None:
    weights = [normal(24, 128, seed=seed), normal(8, 128, seed=seed + 50)]
    inputs = inputs_with_outliers(128, seed)
    fmt, base = parse_format(text), parse_format(text.replace("+awq", ""))
    found = awq(weights, gathered(inputs), fmt, torch.float16)
    plain = [dequantized(weight, base, torch.float16) for weight in weights]
    approx = [unfolded(weight, found.scale, fmt, torch.float16, "up") for weight in weights]
    assert found.plain == pytest.approx(_output_error(weights, inputs, plain), rel=1e-4)
    assert found.error == pytest.approx(_output_error(weights, inputs, approx), rel=1e-4)
    assert found.error <= found.plain


def test_awq_gains_where_a_few_inputs_are_large() -> None:
    found = awq(
        [normal(64, 128)],
        gathered(inputs_with_outliers(128, 1)),
        parse_format("int3+awq"),
        torch.float16,
    )
    assert found.error < 0.7 * found.plain
    assert found.strength > 0


@pytest.mark.parametrize("text", ["int3+awq", "int8-channel+smooth.5"])
def test_scales_that_a_layer_absorbs_are_powers_of_two(text: str) -> None:
    """Found among these, and never worse than none."""
    weights, inputs = [normal(64, 128)], gathered(inputs_with_outliers(128, 1))
    fmt = parse_format(text)
    method = awq if "awq" in text else smooth
    found = method(weights, inputs, fmt, torch.float16, exact=True)
    free = method(weights, inputs, fmt, torch.float16)
    assert torch.equal(found.scale, 2.0 ** found.scale.log2().round())
    assert not torch.equal(free.scale, 2.0 ** free.scale.log2().round())
    assert found.error < found.plain == free.plain


def test_awq_takes_the_best_of_all_exponents() -> None:
    weight, inputs = normal(16, 128, seed=9), inputs_with_outliers(128, 2)
    fmt, mean = parse_format("int4-g64+awq"), inputs.double().abs().mean(0)
    errors = []
    for step in range(STEPS):
        scale = (mean ** (step / STEPS)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        approx = dequantized(weight * scale.float(), parse_format("int4-g64"), torch.float16)
        errors.append(_output_error([weight], inputs, [approx.double() / scale]))
    found = awq([weight], gathered(inputs), fmt, torch.float16)
    assert found.error == pytest.approx(min(errors), rel=1e-3)
    assert found.strength == errors.index(min(errors)) / STEPS


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.95])
def test_a_fold_leaves_the_outputs_as_they_are_before_rounding(strength: float) -> None:
    weight, inputs = normal(32, 128), inputs_with_outliers(128, 3)
    statistics = gathered(inputs)
    scales = [
        awq_scale(statistics.mean(), strength),
        smooth_scale(statistics.maximum, weight.abs().amax(0), strength),
    ]
    for scale in scales:
        exact = inputs.double() @ weight.double().T
        product = (inputs / scale).double() @ folded(weight, scale).double().T
        torch.testing.assert_close(product, exact, rtol=0, atol=1e-6 * float(exact.abs().max()))
    assert torch.equal(awq_scale(statistics.mean(), 0), torch.ones(128))


def test_smooth_scales_are_those_of_the_reference() -> None:
    """``smooth_ln_fcs``, written out."""
    weights, inputs = [normal(8, 64), normal(4, 64, seed=1)], inputs_with_outliers(64, 4)
    maximum = inputs.abs().amax(0)
    columns = torch.cat([w.abs().max(dim=0, keepdim=True)[0] for w in weights], dim=0)
    columns = columns.max(dim=0)[0].clamp(min=1e-5)
    expected = (maximum.pow(0.5) / columns.pow(0.5)).clamp(min=1e-5)
    expected[3] = 1  # it would be 1e-5 for the channel that is always 0
    found = smooth(
        weights, gathered(inputs), parse_format("int8+smooth.5+a8"), torch.float16, inputs
    )
    torch.testing.assert_close(found.scale, expected, rtol=1e-6, atol=0)
    assert found.strength == 0.5


@pytest.mark.parametrize("text", ["int8+smooth.5+a8", "int8+smooth.8+a8:static", "int4+smooth.5"])
@pytest.mark.parametrize("seed", range(4))
def test_smooth_is_never_above_rounding(text: str, seed: int) -> None:
    weight, inputs = normal(24, 128, seed=seed), inputs_with_outliers(128, seed)
    found = smooth([weight], gathered(inputs), parse_format(text), torch.float16, inputs)
    assert found.error <= found.plain
    if "a8" in text and "static" not in text:
        base = parse_format("int8")
        exact = inputs.double() @ weight.double().T
        rounded = quantized_tokens(inputs / found.scale).double()
        product = rounded @ dequantized(weight * found.scale, base, torch.float16).double().T
        assert found.error == pytest.approx(float((product - exact).square().sum()), rel=1e-3)
        assert found.error < 0.5 * found.plain


def test_a_scale_that_does_not_pay_is_left_out() -> None:
    inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    weight = normal(16, 64)
    weight[:, ::9] *= 40
    found = smooth([weight], gathered(inputs), parse_format("int4+smooth1"), torch.float16)
    assert found.error == found.plain
    assert found.strength == 0
    assert torch.equal(found.scale, torch.ones(64))


def test_experts_are_weights_that_share_an_input() -> None:
    inputs, experts = inputs_with_outliers(64, 5), normal(3, 8, 64)
    one = awq([experts], gathered(inputs), parse_format("int3+awq"), torch.float16)
    apart = awq(list(experts), gathered(inputs), parse_format("int3+awq"), torch.float16)
    assert torch.equal(one.scale, apart.scale)
    assert one.error == pytest.approx(apart.error)


def test_a_multiplied_weight_that_overflows_is_no_candidate() -> None:
    """Rounding to nearest just fits float16, and any scale that makes it larger does not."""
    inputs, weight = inputs_with_outliers(64, 1), normal(8, 64) * 2e6
    found = awq([weight], gathered(inputs), parse_format("int4+awq"), torch.float16)
    assert found.strength == 0
    assert math.isfinite(found.error)
    with pytest.raises(FormatError, match="needs a scale"):
        awq([weight * 100], gathered(inputs), parse_format("int4+awq"), torch.float16)


def _set(weight: Tensor, value: float) -> Tensor:
    weight[0, 0] = value
    return weight


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "at least one weight"),
        ([normal(4, 32)], "32 input channels"),
        ([_set(normal(4, 64), math.nan)], "NaN or infinite"),
        ([_set(normal(4, 64), -math.inf)], "NaN or infinite"),
        ([normal(64)], r"not \[64\]"),
    ],
)
def test_what_means_nothing_is_refused(weights: list[Tensor], message: str) -> None:
    statistics = gathered(inputs_with_outliers(64, 0))
    for method in (awq, smooth):
        with pytest.raises(FormatError, match=f"^up.*{message}"):
            method(weights, statistics, parse_format("int4+smooth+awq"), torch.float16, name="up")


def test_no_tokens_no_smooth_and_no_inputs_are_refused() -> None:
    weights, statistics = [normal(4, 64)], gathered(inputs_with_outliers(64, 0))
    for method in (awq, smooth):
        with pytest.raises(FormatError, match="no calibration token"):
            method(weights, InputStatistics.empty(64), parse_format("int4+smooth"), torch.float16)
    with pytest.raises(FormatError, match=r"has no '\+smooth'"):
        smooth(weights, statistics, parse_format("int4"), torch.float16)
    with pytest.raises(FormatError, match="none came"):
        smooth(weights, statistics, parse_format("int8+smooth+a8"), torch.float16)
