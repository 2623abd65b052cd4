"""Integer arithmetic equals compressed-tensors, bit for bit."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.quant.integer import quantize_integer
from engine.quant.quantize import dequantized

OUT, IN = 24, 256


def _normal(seed: int, out: int = OUT) -> Tensor:
    return torch.randn(out, IN, generator=torch.Generator().manual_seed(seed)) * 0.05


def _weights() -> dict[str, Tensor]:
    outlier = _normal(1)
    outlier[3, 17] = 900.0
    blocks = _normal(2)
    blocks[:, :128] = 0.0
    steps = torch.arange(-128, 128).repeat(OUT, 1) / 64
    ties = (torch.arange(IN) % 31 - 15).repeat(OUT, 1) / 2
    ties[:, ::128] = 7.5
    # For some number of bits in each row, −lo / scale is the next float above one half.
    beside_a_tie = torch.zeros(OUT, IN)
    beside_a_tie[:, ::32] = -0.5 - 2.0**-24
    beside_a_tie[:, 1::32] = (2.0 ** (torch.arange(OUT) % 7 + 2) - 1.5)[:, None]
    return {
        "normal": _normal(0),
        "heavy tails": _normal(3) ** 3 * 100,
        "one huge value": outlier,
        "groups of zeros": blocks,
        "all zeros": torch.zeros(OUT, IN),
        "one constant": torch.full((OUT, IN), 0.3),
        "rows of one constant": torch.linspace(-1, 1, OUT)[:, None].repeat(1, IN),
        "negative only": -_normal(4).abs() - 0.01,
        "positive only": _normal(5).abs() + 0.01,
        "evenly spaced": steps,
        "ties": ties,
        "zero point beside a tie": beside_a_tie,
        "float16 source": _normal(6).to(torch.float16).float(),
        "bfloat16 source": _normal(7).to(torch.bfloat16).float(),
        "small": _normal(8) * 1e-6,
        "denormal": _normal(9) * 1e-38,
        "least denormal": _normal(10).sign() * 2.0**-149,
    }


WEIGHTS = _weights()
SCOPES = ["g32", "g128", "channel", "tensor"]
BITS = range(2, 9)


def _args(bits: int, scope: str, symmetric: bool) -> QuantizationArgs:
    group = {"strategy": "group", "group_size": int(scope[1:])} if scope[0] == "g" else {}
    return QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, **(group or {"strategy": scope})
    )


def _parameters(weight: Tensor, args: QuantizationArgs, scope: str) -> tuple[Tensor, Tensor]:
    """Scale in float32 and zero point, by compressed-tensors."""
    if scope == "tensor":
        lo, hi = weight.aminmax()
    elif scope == "channel":
        lo, hi = weight.aminmax(dim=1, keepdim=True)
    else:
        lo, hi = weight.unflatten(1, (-1, args.group_size)).aminmax(dim=2)
    return calculate_qparams(lo, hi, args)


def _spread(parameter: Tensor, scope: str) -> Tensor:
    """One parameter for every weight."""
    if scope[0] == "g":
        return parameter.repeat_interleave(int(scope[1:]), dim=1)
    return parameter.expand(OUT, IN)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("bits", BITS)
def test_dequantised_weights_equal_compressed_tensors(
    bits: int, scope: str, symmetric: bool
) -> None:
    fmt = parse_format(f"int{bits}-{scope}-{'sym' if symmetric else 'asym'}")
    args = _args(bits, scope, symmetric)
    for name, weight in WEIGHTS.items():
        scale, zero_point = _parameters(weight, args, scope)
        for scale_dtype in (torch.float32, torch.float16, torch.bfloat16):
            stored = scale.to(scale_dtype).float()
            # A scale that 16 bits cannot tell from 0 is where compressed-tensors has no answer.
            vanished = stored == 0
            stored = stored.masked_fill(vanished, 2.0**-23)
            expected = fake_quantize(weight, stored, zero_point, args)
            expected = expected.masked_fill(_spread(vanished, scope), 0)
            assert not expected.isnan().any()
            found = dequantized(weight, fmt, scale_dtype)
            assert torch.equal(found, expected), (name, scale_dtype)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("bits", BITS)
def test_codes_scales_and_zero_points_equal_compressed_tensors(
    bits: int, scope: str, symmetric: bool
) -> None:
    fmt = parse_format(f"int{bits}-{scope}-{'sym' if symmetric else 'asym'}")
    args = _args(bits, scope, symmetric)
    for name, weight in WEIGHTS.items():
        if name in ("groups of zeros", "all zeros", "denormal", "least denormal"):
            continue  # scales of 0, whose zero point compressed-tensors takes from 0 / 0
        scale, zero_point = _parameters(weight, args, scope)
        stored = scale.to(torch.bfloat16)
        found = quantize_integer(weight, fmt, torch.bfloat16)
        assert torch.equal(found.scale, stored.reshape(found.scale.shape)), name
        if found.zero_point is None:
            assert symmetric
        else:
            assert torch.equal(found.zero_point, zero_point.reshape(found.scale.shape)), name
        codes = quantize(weight, stored.float(), zero_point, args, dtype=torch.int8)
        assert torch.equal(found.codes, codes), name


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("text", ["int4-{}", "int8-{}-asym", "int8-{}-sym", "int3-{}"])
def test_a_group_that_vanishes_in_16_bits_is_all_zeros(text: str, scope: str) -> None:
    weight = _normal(0) * 1e-10
    found = quantize_integer(weight, parse_format(text.format(scope)), torch.float16)
    assert torch.equal(found.scale, torch.full_like(found.scale, 2.0**-23))
    assert found.scale.float().unique().tolist() == [torch.finfo(torch.float32).eps]
    assert torch.equal(found.codes, torch.zeros_like(found.codes))
    assert torch.equal(found.approx(), torch.zeros_like(weight))
    fmt = parse_format(text.format(scope))
    assert torch.equal(dequantized(weight, fmt, torch.float16), torch.zeros_like(weight))
    assert dequantized(weight, fmt, torch.float32).abs().max() > 0


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("text", ["int4-g32", "int8-channel-sym", "int8-g128-asym", "int3-tensor"])
def test_cast_last_equals_dequantising_in_the_stored_dtype(
    text: str, scale_dtype: torch.dtype
) -> None:
    """A checkpoint is unpacked in the dtype of its scales: that is the float32 result, cast."""
    fmt = parse_format(text)
    for weight in (WEIGHTS["normal"], WEIGHTS["heavy tails"], WEIGHTS["negative only"]):
        found = quantize_integer(weight, fmt, scale_dtype)
        codes = found.codes.to(scale_dtype)
        scope = text.split("-")[1]
        if found.zero_point is not None:
            codes = codes - _spread(found.zero_point, scope).to(scale_dtype)
        unpacked = codes * _spread(found.scale, scope)
        assert torch.equal(found.approx(scale_dtype), unpacked)
        assert torch.equal(dequantized(weight, fmt, scale_dtype).to(scale_dtype), unpacked)
