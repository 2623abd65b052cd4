"""Bits, and what a shape allows: against sums worked out by hand."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import dequantize

from engine.errors import FormatError
from engine.export.compressed.expressed import exportable
from engine.formats.grammar import parse_format
from engine.formats.storage import stored_bits, why_not_held
from engine.quant.float8 import quantize_float8
from tests.quant.adversarial import normal


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("fp32", (3, 5), 480),
        ("bf16", (3, 5), 240),
        ("fp16", (7,), 112),
        # 4 rows of 256: 1024 codes of 4 bits, 8 groups of a 16-bit scale and a 4-bit zero point
        ("int4", (4, 256), 4096 + 8 * 20),
        ("int4-sym", (4, 256), 4096 + 8 * 16),
        ("int4+awq+gptq:actorder", (4, 256), 4096 + 8 * 20),
        # 200 = 128 + 72: two groups a row
        ("int4+hadamard+gptq", (4, 256), 4096 + 8 * 20),  # signs follow from the place
        ("int3", (4, 200), 3 * 800 + 8 * 19),
        ("int3", (2, 4, 200), 2 * (3 * 800 + 8 * 19)),
        ("int8", (4, 200), 6400 + 4 * 16),
        ("int8-asym", (4, 200), 6400 + 4 * 24),
        ("int8+smooth+a8", (4, 200), 6400 + 4 * 16),
        ("int2-tensor", (4, 200), 1600 + 18),
        ("int2-tensor", (3, 4, 200), 4800 + 3 * 18),
        ("fp8-e4m3", (4, 200), 6400 + 4 * 16),
        ("fp8-e4m3-tensor", (4, 200), 6400 + 16),
        ("fp8-e4m3-block128", (130, 200), 8 * 26000 + 4 * 16),
        ("mxfp4", (4, 256), 4096 + 32 * 8),
        ("mxfp8", (4, 256), 8192 + 32 * 8),
        ("nvfp4", (4, 256), 4096 + 64 * 8 + 32),
        ("nvfp4", (2, 4, 256), 2 * (4096 + 64 * 8 + 32)),
        # blocks of 64 run over the flattened weight: 15 values make one block, in eight bytes
        ("nf4", (3, 5), 64 + 32),
        ("fp4-g128", (4, 256), 4096 + 8 * 32),
        # 1024 blocks: 8 bits each, four float32 maxima of 256 of them, one float32 offset
        ("nf4:dq", (256, 256), 4 * 65536 + 8 * 1024 + 32 * 4 + 32),
        ("kmeans3", (4, 200), 2400 + 4 * 8 * 16),
        # four of 800 weights: 16 bits and a 32-bit column each, and a 32-bit count a row
        ("kmeans4:sparse=.5%", (4, 200), 3200 + 4 * 16 * 16 + 4 * 48 + 4 * 32),
        ("kmeans4:sparse=.5%", (2, 4, 200), 2 * (3200 + 4 * 16 * 16 + 4 * 48 + 4 * 32)),
        ("kmeans4:sparse=.001%", (4, 200), 3200 + 4 * 16 * 16),
        ("e8-2+hadamard", (2, 4, 200), 2 * (1600 + 32)),
        ("q8_0", (4, 256), 32 * 34 * 8),
        ("q6_k", (4, 256), 4 * 210 * 8),
        ("q5_k", (4, 256), 4 * 176 * 8),
        ("q4_k", (4, 256), 4 * 144 * 8),
        ("q3_k", (4, 256), 4 * 110 * 8),
        ("q2_k", (4, 256), 4 * 84 * 8),
        ("q4_0", (4, 256), 32 * 18 * 8),
        ("q4_1", (4, 256), 32 * 20 * 8),
        ("q5_0", (4, 256), 32 * 22 * 8),
        ("q5_1", (4, 256), 32 * 24 * 8),
        ("iq4_nl", (4, 256), 32 * 18 * 8),
        ("iq4_xs", (4, 256), 4 * 136 * 8),
    ],
)
def test_stored_bits_count_codes_scales_and_zero_points(
    text: str, shape: tuple[int, ...], bits: int
) -> None:
    assert stored_bits(parse_format(text), shape) == bits


def test_columns_that_outlier_keeps_are_counted_beside_the_codes() -> None:
    split, plain = parse_format("int8+outlier6"), parse_format("int8")
    least = stored_bits(plain, (64, 256))
    assert stored_bits(split, (64, 256)) == least
    assert stored_bits(split, (64, 256), 3) == least + 3 * (64 * 16 + 32)


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("q4_k", (4, 128), "rows of 128 do not divide into the blocks of 256 of q4_k"),
        ("q8_0", (4, 48), "blocks of 32"),
        ("mxfp4", (4, 48), "blocks of 32"),
        ("nvfp4", (4, 40), "blocks of 16"),
        ("e8-2+hadamard", (4, 12), "blocks of 8"),
        ("int4", (128,), "not [128]"),
        ("int4", (2, 2, 2, 2), "not [2, 2, 2, 2]"),
        ("int4", (0, 128), "no values"),
    ],
)
def test_a_shape_that_is_not_held_comes_with_the_reason(
    text: str, shape: tuple[int, ...], why: str
) -> None:
    fmt = parse_format(text)
    assert why in str(why_not_held(fmt, shape))
    assert exportable(fmt, shape) == why_not_held(fmt, shape)
    with pytest.raises(FormatError):
        stored_bits(fmt, shape)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("int4", (4, 200)), ("nf4", (3, 5)), ("fp8-e4m3-block128", (3, 5)), ("bf16", (7,))],
)
def test_formats_without_blocks_in_the_row_hold_any(text: str, shape: tuple[int, ...]) -> None:
    assert why_not_held(parse_format(text), shape) is None


def test_what_can_be_exported() -> None:
    floats = ("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block128", "mxfp4", "mxfp8", "nvfp4")
    for text in ("int4", "int2-g32-sym", "int8", "int8-asym", "bf16", *floats):
        assert exportable(parse_format(text), (4, 256)) is None
    assert exportable(parse_format("int8"), (4, 200)) is None
    assert "has no fp8-e5m2" in str(exportable(parse_format("fp8-e5m2"), (4, 256)))
    assert "has no nf4" in str(exportable(parse_format("nf4-g128"), (4, 256)))
    assert "GGUF" in str(exportable(parse_format("q4_k"), (4, 256)))
    assert exportable(parse_format("int4"), (4, 192)) == (
        "the last group of 64 is shorter than 128: "
        "compressed-tensors needs groups that divide the row"
    )
    assert "last group of 64" in str(exportable(parse_format("int4"), (4, 64)))
    assert "run time" in str(exportable(parse_format("int4+awq:online"), (4, 128)))
    for text in ("int4+hadamard", "fp8-e4m3+hadamard+gptq", "e8-2+hadamard"):
        assert "rotates inputs and outputs at run" in str(exportable(parse_format(text), (4, 128)))
    for text in (
        "int4+awq",
        "int8+smooth.5+gptq",
        "int4+gptq",
        "int4+clip+gptq:actorder",
        "fp8-e4m3+gptq",
    ):
        assert exportable(parse_format(text), (4, 128)) is None


BLOCKED = [(256, 384), (150, 320), (128, 320), (256, 128), (100, 100), (384, 100), (300, 256)]


@pytest.mark.parametrize("shape", [*BLOCKED, (128, 256), (100, 256), (200, 128), (128, 100)])
def test_blocks_are_exportable_where_compressed_tensors_unpacks_them(
    shape: tuple[int, int],
) -> None:
    fmt = parse_format("fp8-e4m3-block128")
    weight = normal(*shape) * torch.logspace(-3, 3, shape[1])
    stored = quantize_float8(weight, fmt, torch.float32)
    try:
        unpacked = dequantize(stored.codes, stored.scale)
    except (RuntimeError, ValueError):
        right = False
    else:
        right = torch.equal(unpacked, stored.approx())
    assert (exportable(fmt, shape) is None) == right
