"""Floating-point formats equal compressed-tensors, bit for bit; e5m2 equals the definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    generate_gparam,
    maybe_pad_tensor_for_block_quant,
)
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.float8 import Float8, quantize_float8
from engine.quant.microscaling import quantize_microscaled
from engine.quant.nvfp4 import quantize_nvfp4
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial

SHAPES = [(24, 256), (5, 96), (150, 320)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """compressed-tensors compiles its cast to 4 bits, which takes long and changes nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _scheme(name: str) -> QuantizationArgs:
    weights = preset_name_to_scheme(name, ["Linear"]).weights
    assert weights is not None
    return weights


def _float8(scope: str) -> QuantizationArgs:
    if scope == "block128":
        return _scheme("FP8_BLOCK")
    return QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=scope)


def _range(weight: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    if scope == "tensor":
        return weight.aminmax()
    if scope == "channel":
        return weight.aminmax(dim=1, keepdim=True)
    padded = maybe_pad_tensor_for_block_quant(weight, (128, 128))
    blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).transpose(1, 2).flatten(2)
    return blocks.aminmax(dim=2)


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("scope", ["channel", "tensor", "block128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float8_equals_compressed_tensors(shape: tuple[int, int], scope: str) -> None:
    fmt, args = parse_format(f"fp8-e4m3-{scope}"), _float8(scope)
    compared = 0
    for name, weight in adversarial(*shape).items():
        scale, zero_point = calculate_qparams(*_range(weight, scope), args)
        for scale_dtype in DTYPES:
            stored = scale.to(scale_dtype)
            if stored.isinf().any() or (stored == 0).any():
                continue  # an error here, and no answer there
            compared += 1
            expected = fake_quantize(weight, stored.float(), zero_point, args)
            assert _same(dequantized(weight, fmt, scale_dtype), expected), (name, scale_dtype)
            codes = quantize(weight, stored.float(), zero_point, args, dtype=torch.float8_e4m3fn)
            found = quantize_float8(weight, fmt, scale_dtype)
            assert _same(found.codes.float(), codes.float()), name
            assert _same(found.scale, stored.reshape(found.scale.shape)), name
            assert _same(found.approx(), expected), name
    assert compared >= 40


def _defined(weight: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    """Nearest value of a float8 dtype times the scale: a search over all values, in float64."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    values = values[values.isfinite()].unique()
    scaled = (weight / scale).double().unsqueeze(-1)
    distance = (scaled - values).abs()
    # Two are as near only on a tie, where the one with an even last bit is due.
    odd = values.to(dtype).view(torch.uint8) & 1
    nearest = (distance.masked_fill(distance > distance.amin(-1, keepdim=True), 9e99) + odd).argmin(
        -1
    )
    return (values[nearest] * scale.double()).float()


@pytest.mark.parametrize("name", ["fp8-e4m3", "fp8-e5m2"])
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_float8_equals_a_search_over_all_its_values(name: str, scale_dtype: torch.dtype) -> None:
    dtype = torch.float8_e4m3fn if name == "fp8-e4m3" else torch.float8_e5m2
    top = {"fp8-e4m3": 448.0, "fp8-e5m2": 57344.0}[name]
    for which, weight in adversarial(9, 96).items():
        scale = (weight.abs().amax(1, keepdim=True) / top).to(scale_dtype).float()
        if scale.isinf().any() or (scale == 0).any():
            continue
        expected = _defined(weight, dtype, scale)
        assert torch.equal(dequantized(weight, parse_format(name), scale_dtype), expected), which


def test_blocks_at_the_edges_share_a_scale_among_what_is_there() -> None:
    weight = adversarial(150, 320)["normal"]
    weight[128:] *= 100
    weight[:, 256:] *= 10_000
    found = quantize_float8(weight, parse_format("fp8-e4m3-block128"), torch.float32)
    assert found.scale.shape == (2, 3)
    for i, rows in enumerate((slice(0, 128), slice(128, 150))):
        for j, columns in enumerate((slice(0, 128), slice(128, 256), slice(256, 320))):
            assert found.scale[i, j] == weight[rows, columns].abs().amax() / 448


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("shape", [(24, 256), (5, 96), (1, 32)])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_microscaling_equals_compressed_tensors(
    name: str, shape: tuple[int, int], source: torch.dtype
) -> None:
    fmt, args = parse_format(name), _scheme(name.upper() + "A16")
    for which, exact in adversarial(*shape).items():
        weight = exact.to(source)
        if not weight.isfinite().all():
            continue
        wide = weight.float()
        scale, zero_point = calculate_qparams(*wide.unflatten(1, (-1, 32)).aminmax(dim=2), args)
        expected = fake_quantize(wide, scale, zero_point, args)
        assert _same(dequantized(weight, fmt, torch.bfloat16), expected), which
        found = quantize_microscaled(weight, fmt)
        assert _same(found.approx(), expected), which
        assert _same(found.exponent, (127 + scale.log2()).to(torch.uint8)), which
        codes = quantize(wide, scale, zero_point, args)
        if name == "mxfp4":
            assert _same(found.codes, pack_fp4_to_uint8(codes)), which
        else:
            assert _same(found.codes.float(), codes), which


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_a_magnitude_at_the_end_of_float32_is_refused(name: str) -> None:
    fmt = parse_format(name)
    below = torch.full((1, 32), 1.7499999 * 2.0**127)
    assert quantize_microscaled(below, fmt).approx().isfinite().all()
    with pytest.raises(FormatError, match=r"^head: .* magnitude 2\.98e\+38"):
        dequantized(below.nextafter(torch.tensor(3e38)), fmt, torch.bfloat16, "head")


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("shape", [(24, 256), (5, 48), (1, 16)])
def test_nvfp4_equals_compressed_tensors(shape: tuple[int, int], source: torch.dtype) -> None:
    fmt, args = parse_format("nvfp4"), _scheme("NVFP4A16")
    for which, exact in adversarial(*shape).items():
        weight = exact.to(source)
        if not weight.isfinite().all():
            continue
        wide = weight.float()
        global_scale = generate_gparam(*wide.aminmax())
        extremes = wide.unflatten(1, (-1, 16)).aminmax(dim=2)
        scale, zero_point = calculate_qparams(*extremes, args, global_scale=global_scale)
        more: dict[str, Any] = {"global_scale": global_scale}
        expected = fake_quantize(wide, scale, zero_point, args, **more)
        assert _same(dequantized(weight, fmt, torch.bfloat16), expected), which
        found = quantize_nvfp4(weight, parse_format("nvfp4"))
        assert _same(found.approx(), expected), which
        assert _same(found.global_scale, global_scale), which
        assert _same(found.scale.float(), scale), which
        codes = quantize(wide, scale, zero_point.to(torch.float32), args, **more)
        assert _same(found.codes, pack_fp4_to_uint8(codes)), which


def test_a_float8_scale_that_vanishes_in_16_bits_makes_zeros() -> None:
    weight = adversarial(8, 64)["normal"] * 1e-10
    for text in ("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e5m2-block128"):
        found: Float8 = quantize_float8(weight, parse_format(text), torch.float16)
        assert (found.scale == 2.0**-23).all()
        assert torch.equal(found.approx(), torch.zeros_like(weight))
