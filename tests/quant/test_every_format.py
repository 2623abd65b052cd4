"""What holds for every format that is built: shapes, memory, sizes, strange values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.catalogue import BASES
from engine.formats.grammar import Format, parse_format
from engine.formats.storage import stored_bits
from engine.quant import rows
from engine.quant.data_free.hadamard import Rotated
from engine.quant.packed import packed
from engine.quant.quantize import dequantized, scale_dtype_for, stored_form
from engine.quant.stored import StoredWeight, stored_bytes
from tests.quant.adversarial import adversarial, normal

VARIANTS = [
    *(f"fp8-{kind}-{scope}" for kind in ("e4m3", "e5m2") for scope in ("tensor", "block128")),
    *("int8-asym", "int3-tensor", "int4-g32-sym", "nf4-g32:dq", "fp4-g4096"),
    *("nf4-g512", "kmeans3:sparse=.5%", "e8-2+hadamard"),
    *("int4+clip", "int3-tensor+clip", "fp8-e4m3-block128+clip", "fp8-e5m2-tensor+clip"),
    *("mxfp4+clip", "mxfp8+clip", "nvfp4+clip", "nf4+clip", "nf4:dq+clip"),
    *("int4+hqq", "int3-g48+hqq", "int4-tensor+hqq"),
    *("int4+hadamard", "int3-tensor+hadamard+clip", "nvfp4+hadamard", "q4_k+hadamard"),
    *("nf4:dq+hadamard", "fp8-e4m3+hadamard"),
]
TEXTS = [text for text in [*BASES, *VARIANTS] if text != "e8-2"]
QUANTISED = [text for text in TEXTS if not parse_format(text).kept]


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(9), other.nan_to_num(9))


@pytest.mark.parametrize("text", QUANTISED)
def test_what_is_written_stands_for_the_dequantised_weight(text: str) -> None:
    fmt = parse_format(text)
    for name, weight in adversarial(20, 512).items():
        if name == "rows of all magnitudes":
            continue  # beyond the range of some formats
        found = stored_form(weight, fmt, torch.bfloat16)
        assert torch.equal(found.approx(), dequantized(weight, fmt, torch.bfloat16)), name
        assert found.approx(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("text", QUANTISED)
def test_a_packed_form_gives_the_same_weight_in_fewer_bytes(text: str) -> None:
    fmt = parse_format(text)
    for weight in (normal(20, 512), normal(3, 4, 256), normal(1, 768), normal(5, 256) * 0):
        found = stored_form(weight, fmt, torch.bfloat16)
        smaller = packed(found)
        assert torch.equal(smaller.approx(), found.approx())
        assert torch.equal(smaller.approx(torch.bfloat16), found.approx(torch.bfloat16))
        integers = fmt.family == "integer" and (fmt.bits <= 4 or not weight.any())
        assert stored_bytes(smaller) == stored_bytes(found) - integers * (weight.numel() // 2)


@pytest.mark.parametrize("shape", [(20, 512), (3, 4, 256), (130, 256), (1, 768)])
@pytest.mark.parametrize("text", QUANTISED)
def test_the_size_is_that_of_what_is_written(text: str, shape: tuple[int, ...]) -> None:
    fmt = parse_format(text)
    found = stored_form(normal(*shape), fmt, torch.float16)
    unpacked = 0
    if fmt.family == "integer" or fmt.name.startswith("kmeans"):
        unpacked = (8 - fmt.bits) * math.prod(shape)  # one code a byte, packed by who writes it
        whole = fmt.family == "integer" and not fmt.symmetric and "hqq" not in text
        unpacked += (8 - fmt.bits) * _zeros(fmt, shape) if whole else 0
    assert 8 * stored_bytes(found) - unpacked == stored_bits(fmt, shape)


def _zeros(fmt: Format, shape: tuple[int, ...]) -> int:
    found = stored_form(normal(*shape), fmt, torch.float16)
    zero_point = getattr(found.stored if isinstance(found, Rotated) else found, "zero_point", None)
    assert isinstance(zero_point, Tensor)
    return zero_point.numel()


@pytest.mark.parametrize("text", QUANTISED)
def test_chunks_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(140, 256)
    weight[20, 5] = math.nan
    weight[36, 7] = 3.0
    fmt = parse_format(text)
    whole = dequantized(weight, fmt, torch.float16)
    written = stored_form(weight, fmt, torch.float16)
    assert len(list(rows.row_chunks(weight))) == 1
    monkeypatch.setattr(rows, "CHUNK_BYTES", 7 * 256 * 4)
    assert len(list(rows.row_chunks(weight))) == 20
    assert _equal(dequantized(weight, fmt, torch.float16), whole)
    again = stored_form(weight, fmt, torch.float16)
    for one, other in zip(_parts(again), _parts(written), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def _parts(found: StoredWeight) -> list[object]:
    return list(vars(found.stored if isinstance(found, Rotated) else found).values())


@pytest.mark.parametrize("text", TEXTS)
def test_each_expert_is_a_weight_of_its_own(text: str) -> None:
    weight = normal(3, 6, 256) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    fmt = parse_format(text)
    alone = torch.stack([dequantized(expert, fmt, torch.float16) for expert in weight])
    assert torch.equal(dequantized(weight, fmt, torch.float16), alone)
    if not fmt.kept:
        assert torch.equal(stored_form(weight, fmt, torch.float16).approx(), alone)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_the_dtype_and_the_layout_a_weight_comes_in_change_nothing(
    text: str, source: torch.dtype
) -> None:
    weight = normal(256, 16).to(source).T
    before = weight.clone()
    fmt = parse_format(text)
    scale_dtype = scale_dtype_for(source)
    found = dequantized(weight, fmt, scale_dtype)
    assert found.dtype == torch.float32
    assert not weight.is_contiguous()
    assert torch.equal(found, dequantized(weight.contiguous(), fmt, scale_dtype))
    assert torch.equal(found, dequantized(weight.float(), fmt, scale_dtype))
    assert torch.equal(found, dequantized(weight.double(), fmt, scale_dtype))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("text", TEXTS)
def test_the_input_is_not_modified_nor_shared(text: str) -> None:
    weight = normal(16, 256)
    weight[3, 3] = math.inf
    before = weight.clone()
    found = dequantized(torch.nn.Parameter(weight), parse_format(text), torch.float16)
    assert not found.requires_grad
    found.fill_(7)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("text", QUANTISED)
def test_values_that_are_not_finite_pass_and_count_for_no_range(text: str) -> None:
    fmt = parse_format(text)
    clean = normal(8, 256)
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
    assert torch.equal(stored_form(broken, fmt, torch.float16).approx(), expected)


@pytest.mark.parametrize("text", QUANTISED)
def test_all_zeros_stay_zero(text: str) -> None:
    fmt = parse_format(text)
    for weight in (torch.zeros(4, 256), -torch.zeros(4, 256)):
        assert torch.equal(dequantized(weight, fmt, torch.float16), torch.zeros(4, 256))


@pytest.mark.parametrize("text", ["bf16", "fp32"])
def test_a_kept_format_has_nothing_to_write(text: str) -> None:
    with pytest.raises(FormatError, match="no codes to write"):
        stored_form(torch.zeros(4, 256), parse_format(text), torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("text", TEXTS)
def test_a_gpu_gives_the_same_bits(text: str) -> None:
    weight = normal(64, 1024)
    fmt = parse_format(text)
    found = dequantized(weight.cuda(), fmt, torch.float16)
    assert torch.equal(found.cpu(), dequantized(weight, fmt, torch.float16))
