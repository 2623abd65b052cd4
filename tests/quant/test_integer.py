"""What holds for integer formats whatever the reference: shapes, memory, strange values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant import rows
from engine.quant.integer import quantize_integer
from engine.quant.quantize import dequantized, scale_dtype_for

TEXTS = ["int4-g32", "int4-g128-sym", "int8", "int8-asym", "int3-tensor", "int2-tensor-sym"]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def _plain(weight: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """The definition, one group at a time in Python's own loops, scale in float16."""
    out = torch.zeros_like(weight)
    half = 2 ** (bits - 1)
    for i in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            group = weight[i, start : start + size]
            lo, hi = group.amin().clamp(max=0), group.amax().clamp(min=0)
            if symmetric:
                scale, zero = group.abs().amax() / (half - 0.5), torch.tensor(0.0)
            else:
                scale = (hi - lo) / (2 * half - 1)
                zero = torch.round(-half - lo / scale)
            scale = scale.half().float()
            codes = torch.round(torch.clamp(group / scale + zero, -half, half - 1))
            out[i, start : start + size] = (codes - zero) * scale
    return out


@pytest.mark.parametrize("text", ["int4-g48", "int4-g48-sym", "int8-g100-asym", "int3-g512"])
def test_a_row_ends_in_a_shorter_group(text: str) -> None:
    weight = _normal(6, 130)
    weight[:, 96:] += 0.3  # a last group with a range of its own, 0 not inside
    fmt = parse_format(text)
    assert fmt.group_size is not None
    expected = _plain(weight, fmt.bits, fmt.group_size, fmt.symmetric)
    assert torch.equal(dequantized(weight, fmt, torch.float16), expected)
    found = quantize_integer(weight, fmt, torch.float16)
    assert found.scale.shape == (6, math.ceil(130 / fmt.group_size))
    assert found.shape == found.codes.shape == (6, 130)
    assert torch.equal(found.approx(), expected)


@pytest.mark.parametrize("text", TEXTS)
def test_codes_stand_for_the_dequantised_weight(text: str) -> None:
    weight = _normal(20, 256)
    fmt = parse_format(text)
    found = quantize_integer(weight, fmt, torch.bfloat16)
    assert found.codes.dtype == torch.int8
    assert found.scale.dtype == torch.bfloat16
    assert (found.zero_point is None) == fmt.symmetric
    half = 2 ** (fmt.bits - 1)
    assert -half <= int(found.codes.min()) < int(found.codes.max()) <= half - 1
    assert torch.equal(found.approx(), dequantized(weight, fmt, torch.bfloat16))


@pytest.mark.parametrize("text", TEXTS)
def test_chunks_of_rows_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _normal(37, 256)
    weight[20, 5] = math.nan
    weight[36, 7] = 3.0
    fmt = parse_format(text)
    whole = dequantized(weight, fmt, torch.float16)
    codes = quantize_integer(weight, fmt, torch.float16)
    assert len(list(rows.row_chunks(weight))) == 1
    monkeypatch.setattr(rows, "CHUNK_BYTES", 5 * 256 * 4)
    assert len(list(rows.row_chunks(weight))) == 8
    assert torch.equal(dequantized(weight, fmt, torch.float16).nan_to_num(9), whole.nan_to_num(9))
    again = quantize_integer(weight, fmt, torch.float16)
    assert torch.equal(again.codes, codes.codes)
    assert torch.equal(again.scale, codes.scale)


def test_chunks_keep_to_their_size() -> None:
    matrix = torch.empty(100_000, 4096, device="meta")
    chunks = list(rows.row_chunks(matrix))
    assert all((c.stop - c.start) * 4096 * 4 <= rows.CHUNK_BYTES for c in chunks)
    assert [c.start for c in chunks[1:]] == [c.stop for c in chunks[:-1]]
    assert (chunks[0].start, chunks[-1].stop) == (0, 100_000)
    wide = torch.empty(2, 10_000_000, device="meta")
    assert len(list(rows.row_chunks(wide))) == 2


@pytest.mark.parametrize("text", [*TEXTS, "bf16", "fp16"])
def test_each_expert_is_a_weight_of_its_own(text: str) -> None:
    weight = _normal(3, 8, 256) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    fmt = parse_format(text)
    alone = torch.stack([dequantized(expert, fmt, torch.float16) for expert in weight])
    assert torch.equal(dequantized(weight, fmt, torch.float16), alone)
    if not fmt.kept:
        found = quantize_integer(weight, fmt, torch.float16)
        assert found.scale.shape[0] == 3
        assert torch.equal(found.approx(), alone)


@pytest.mark.parametrize("text", [*TEXTS, "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_the_dtype_a_weight_comes_in_changes_nothing(text: str, source: torch.dtype) -> None:
    weight = _normal(16, 256).to(source)
    before = weight.clone()
    fmt = parse_format(text)
    scale_dtype = scale_dtype_for(source)
    found = dequantized(weight, fmt, scale_dtype)
    assert found.dtype == torch.float32
    assert torch.equal(found, dequantized(weight.float(), fmt, scale_dtype))
    assert torch.equal(found, dequantized(weight.double(), fmt, scale_dtype))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("text", [*TEXTS, "fp32", "bf16"])
def test_the_input_is_not_modified_nor_shared(text: str) -> None:
    weight = _normal(16, 256)
    weight[3, 3] = math.inf
    before = weight.clone()
    found = dequantized(torch.nn.Parameter(weight), parse_format(text), torch.float16)
    assert not found.requires_grad
    found.fill_(7)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("text", TEXTS)
def test_a_transposed_view_gives_the_same(text: str) -> None:
    weight = _normal(256, 16).T
    assert not weight.is_contiguous()
    fmt = parse_format(text)
    expected = dequantized(weight.contiguous(), fmt, torch.float16)
    assert torch.equal(dequantized(weight, fmt, torch.float16), expected)


@pytest.mark.parametrize("text", TEXTS)
def test_values_that_are_not_finite_pass_and_count_for_no_range(text: str) -> None:
    fmt = parse_format(text)
    clean = _normal(8, 256)
    places = torch.zeros(8, 256, dtype=torch.bool)
    places[0, 0] = places[1, 200] = places[7, 255] = places[4, :] = True
    clean[places] = 0.0
    broken = clean.clone()
    broken[places] = math.inf
    broken[1, 200], broken[7, 255] = math.nan, -math.inf
    found = dequantized(broken, fmt, torch.float16)
    expected = dequantized(clean, fmt, torch.float16)
    assert torch.equal(found[~places], expected[~places])
    assert found[1, 200].isnan()
    assert found[7, 255] == -math.inf
    assert (found[4] == math.inf).all()
    codes = quantize_integer(broken, fmt, torch.float16)
    assert torch.equal(codes.approx(), expected)
    assert torch.equal(codes.approx()[places], torch.zeros(int(places.sum())))


@pytest.mark.parametrize("text", ["int8-tensor", "int4-g32", "int2", "int8-asym"])
def test_a_scale_that_overflows_names_the_tensor(text: str) -> None:
    weight = _normal(4, 256)
    weight[2, 9] = 3e7
    fmt = parse_format(text)
    with pytest.raises(FormatError, match=r"^blocks\.0\.up: .*needs a scale.*float16"):
        dequantized(weight, fmt, torch.float16, name="blocks.0.up")
    with pytest.raises(FormatError, match=r"^weight: "):
        quantize_integer(weight, fmt, torch.float16)
    assert dequantized(weight, fmt, torch.bfloat16).isfinite().all()


def test_a_range_wider_than_float32_is_an_error() -> None:
    weight = torch.tensor([[3e38, -3e38]])
    with pytest.raises(FormatError, match="needs a scale"):
        dequantized(weight, parse_format("int8-asym"), torch.bfloat16)


def test_kept_formats_cast_there_and_back() -> None:
    weight = _normal(8, 64)
    assert torch.equal(dequantized(weight, parse_format("fp32"), torch.float16), weight)
    for text, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        fmt = parse_format(text)
        assert torch.equal(dequantized(weight, fmt, torch.float16), weight.to(dtype).float())
        assert torch.equal(dequantized(weight[0], fmt, dtype), weight[0].to(dtype).float())
    large = torch.tensor([[1e5, math.inf]])
    with pytest.raises(FormatError, match=r"head: .*too large for fp16"):
        dequantized(large, parse_format("fp16"), torch.float16, name="head")
    assert dequantized(large, parse_format("bf16"), torch.float16)[0, 1] == math.inf


@pytest.mark.parametrize(("text", "message"), [("int4+awq", "inputs"), ("int4", "not \\[256\\]")])
def test_what_cannot_be_quantised_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        dequantized(torch.zeros(256), parse_format(text), torch.float16)


def test_scales_are_stored_in_the_dtype_of_the_checkpoint() -> None:
    assert scale_dtype_for(torch.bfloat16) == torch.bfloat16
    for stored in (torch.float16, torch.float32, torch.float64):
        assert scale_dtype_for(stored) == torch.float16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("text", TEXTS)
def test_a_gpu_gives_the_same_bits(text: str) -> None:
    weight = _normal(64, 1024)
    fmt = parse_format(text)
    found = dequantized(weight.cuda(), fmt, torch.float16)
    assert torch.equal(found.cpu(), dequantized(weight, fmt, torch.float16))
