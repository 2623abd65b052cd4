"""Sums over calibration tokens: against float64, in parts, and refused where they mean nothing."""

from __future__ import annotations

import math

import pytest
import torch

from engine.errors import FormatError
from engine.quant import input_statistics as statistics
from engine.quant.input_statistics import InputStatistics, output_error
from tests.quant.adversarial import normal


def _of(inputs: torch.Tensor) -> InputStatistics:
    found = InputStatistics.empty(inputs.shape[-1])
    found.add(inputs)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_those_of_float64(dtype: torch.dtype) -> None:
    inputs = (normal(3, 100, 24) * 20).to(dtype)
    found = _of(inputs)
    exact = inputs.double().view(-1, 24)
    assert found.tokens == 300
    torch.testing.assert_close(found.gram.double(), exact.T @ exact, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.maximum.double(), exact.abs().amax(0))
    torch.testing.assert_close(found.mean().double(), exact.abs().mean(0), rtol=1e-6, atol=0)
    assert found.gram.dtype == torch.float32


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_two_halves_are_the_whole(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, where no sum is rounded: inputs are small whole numbers."""
    monkeypatch.setattr(statistics, "TOKENS", tokens)
    inputs = torch.randint(-9, 9, (101, 16), generator=torch.Generator().manual_seed(0)).float()
    whole, first, second = _of(inputs), _of(inputs[:40]), _of(inputs[40:])
    streamed = InputStatistics.empty(16)
    for part in inputs.split(13):
        streamed.add(part)
    first.merge(second)
    first.merge(InputStatistics.empty(16))
    for found in (first, streamed):
        assert torch.equal(found.gram, whole.gram)
        assert torch.equal(found.maximum, whole.maximum)
        assert torch.equal(found.magnitude, whole.magnitude)
        assert found.tokens == whole.tokens == 101
    assert torch.equal(whole.gram, inputs.T @ inputs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_are_refused_and_leave_no_trace(value: float) -> None:
    found = InputStatistics.empty(8)
    inputs = normal(5000, 8)
    inputs[4500, 3] = value
    with pytest.raises(FormatError, match=r"^up: 1 of its calibration inputs"):
        found.add(inputs, "up")
    assert found.tokens == 0
    assert not found.gram.any()


def test_no_tokens_is_an_error_when_something_is_asked() -> None:
    found = InputStatistics.empty(8)
    found.add(torch.empty(0, 8))
    for ask in (found.check, found.mean):
        with pytest.raises(FormatError, match=r"^up: no calibration token"):
            ask("up")


def test_widths_must_agree() -> None:
    found = _of(normal(4, 8))
    with pytest.raises(FormatError, match="8 input channels"):
        found.add(normal(4, 9))
    with pytest.raises(FormatError, match="do not fit 8"):
        found.merge(InputStatistics.empty(9))
    with pytest.raises(FormatError, match="up has 9 input channels"):
        found.check("up", 9)


def test_sums_that_overflow_are_an_error() -> None:
    found = _of(torch.full((4, 8), 1e20))
    with pytest.raises(FormatError, match="not finite"):
        found.check("up")


def test_the_output_error_is_that_of_the_outputs() -> None:
    inputs, difference = normal(200, 48, seed=1), normal(30, 48, seed=2)
    exact = (inputs.double() @ difference.double().T).square().sum()
    assert output_error(difference, _of(inputs).gram) == pytest.approx(float(exact), rel=1e-5)
