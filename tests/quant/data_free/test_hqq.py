"""Half-quadratic zero points, against the iteration written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.export.compressed.expressed import exportable
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits
from engine.quant.quantize import dequantized, stored_form
from engine.quant.quantized import Quantized
from tests.quant.adversarial import adversarial, normal

TEXTS = [
    "int2-g64",
    "int3-g32",
    "int4-g128",
    "int4-g48",
    "int4-channel",
    "int4-tensor",
    "int8-asym",
]


def _mean(weight: Tensor, text: str, scale_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    approx = dequantized(weight, parse_format(text), scale_dtype)
    return (approx.double() - weight.double()).abs()


@pytest.mark.parametrize("text", TEXTS)
def test_the_mean_absolute_error_is_never_above_that_of_rounding(text: str) -> None:
    for name, weight in adversarial(20, 512).items():
        plain, found = _mean(weight, text).sum(), _mean(weight, f"{text}+hqq").sum()
        assert found <= plain * (1 + 1e-6), name


@pytest.mark.parametrize("text", ["int2-g64", "int3-g64", "int4-g64"])
def test_no_group_is_worse_than_rounding_and_most_are_better(text: str) -> None:
    weight = normal(16, 512, seed=5)
    plain, found = (
        _mean(weight, spelled).view(16, -1, 64).sum(-1) for spelled in (text, f"{text}+hqq")
    )
    assert (found <= plain * (1 + 1e-6)).all()
    assert (found < plain).double().mean() > 0.5


def _iterated(group: Tensor, bits: int) -> tuple[float, float]:
    """The least mean absolute error of all iterates and the zero point it is found with.

    ``optimize_weights_proximal`` of hqq in float64, without its early end; scale and zero points
    as they are stored in float16.
    """
    half = 2 ** (bits - 1)
    lo, hi = group.amin().clamp(max=0), group.amax().clamp(min=0)
    scale = ((hi - lo) / (2 * half - 1)).half().double()
    zero, beta, found = -half - lo / scale, 10.0, []
    whole = (-half - lo / ((hi - lo) / (2 * half - 1))).round()
    for point in [whole, *[None] * 21]:
        used = point if point is not None else zero.half().double()
        codes = (group / scale + used).round().clamp(-half, half - 1)
        found.append((float((group - (codes - used) * scale).abs().mean()), float(used)))
        if point is None:
            codes = (group / scale + zero).round().clamp(-half, half - 1)
            rest = group - (codes - zero) * scale
            shrunk = rest.sign() * (rest.abs() - rest.abs() ** (0.7 - 1) / beta).clamp(min=0)
            zero = (codes - (group - shrunk) / scale).mean()
            beta *= 1.01
    return min(found, key=lambda each: each[0])


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_zero_points_are_those_of_the_iteration_in_float64(bits: int, spread: float) -> None:
    """Large weights too, where the soft threshold leaves something over."""
    weight = normal(8, 128, seed=bits) / 0.05 * spread
    found = stored_form(weight, parse_format(f"int{bits}-g32+hqq"), torch.float16)
    assert isinstance(found, Quantized)
    assert found.zero_point is not None
    approx = found.approx().double()
    same = 0
    for row in range(8):
        for group in range(4):
            part = slice(32 * group, 32 * group + 32)
            error, zero = _iterated(weight[row, part].double(), bits)
            mine = float((approx[row, part] - weight[row, part]).abs().mean())
            assert mine == pytest.approx(error, rel=1e-3)
            same += abs(float(found.zero_point[row, group]) - zero) < 0.01
    assert same >= 29  # where two iterates are as good, rounding decides


def test_zero_points_are_stored_in_16_bits_and_not_exported() -> None:
    fmt = parse_format("int4+hqq")
    found = stored_form(normal(4, 256), fmt, torch.bfloat16)
    assert isinstance(found, Quantized)
    assert found.zero_point is not None
    assert found.zero_point.dtype == torch.bfloat16
    assert not torch.equal(found.zero_point, found.zero_point.round())
    assert stored_bits(fmt, (4, 256)) == 4096 + 8 * 32
    assert "fractional zero points" in str(exportable(fmt, (4, 256)))


def test_groups_of_zeros_stay_zero() -> None:
    weight = normal(4, 256)
    weight[1, :128] = 0
    found = dequantized(weight, parse_format("int4+hqq"), torch.float16)
    assert (found[1, :128] == 0).all()


def test_a_scale_that_overflows_names_the_tensor() -> None:
    with pytest.raises(FormatError, match=r"^up: .*needs a scale"):
        dequantized(normal(4, 256) * 1e8, parse_format("int4+hqq"), torch.float16, name="up")
