"""nf4 and fp4 equal bitsandbytes on a CPU, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from bitsandbytes import functional as bnb

from engine.formats.grammar import parse_format
from engine.quant.normal_float import dynamic_table, quantize_normal_float, table
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial, normal

SHAPES = [(24, 256), (7, 130), (3, 5), (1, 1)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _cases(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    if shape != (1, 1):
        return adversarial(*shape)
    return {str(value): torch.full(shape, value) for value in (0.0, -0.3, 1e-40, 3e38)}


@pytest.mark.parametrize("double", [False, True], ids=["plain", "dq"])
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_maxima_and_weights_equal_bitsandbytes(
    kind: str, shape: tuple[int, int], source: torch.dtype, double: bool
) -> None:
    compared = 0
    for which, exact in _cases(shape).items():
        weight = exact.to(source)
        if not weight.isfinite().all():
            continue
        for size in (32, 64, 256, 4096):
            packed, state = bnb.quantize_4bit(
                weight, blocksize=size, quant_type=kind, compress_statistics=double
            )
            fmt = parse_format(f"{kind}-g{size}{':dq' if double else ''}")
            found = quantize_normal_float(weight, fmt)
            assert torch.equal(found.codes, packed.flatten()), (which, size)
            assert torch.equal(found.absmax, state.absmax), (which, size)
            if double:
                assert torch.equal(found.nested_absmax, state.state2.absmax), (which, size)
                assert torch.equal(found.offset, state.offset.reshape(1)), (which, size)
            cast = bnb.dequantize_4bit(packed, state).reshape(shape)
            state.dtype = torch.float32
            expected = bnb.dequantize_4bit(packed, state).reshape(shape)
            approx = dequantized(weight, fmt, torch.bfloat16)
            assert torch.equal(approx, expected), (which, size)
            assert torch.equal(found.approx(), expected), (which, size)
            if "denormal" not in which:  # which its bfloat16 instructions take for zero
                assert torch.equal(found.approx(source), cast), (which, size)
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("text", ["nf4", "fp4", "nf4-g128:dq", "fp4-g32:dq"])
def test_a_weight_of_many_blocks_equals_bitsandbytes(text: str) -> None:
    weight = normal(700, 1000) * torch.logspace(-2, 1, 700)[:, None]
    fmt = parse_format(text)
    packed, state = bnb.quantize_4bit(
        weight,
        blocksize=fmt.group_size,
        quant_type=fmt.name,
        compress_statistics=bool(fmt.options),
    )
    found = quantize_normal_float(weight, fmt)
    assert torch.equal(found.absmax, state.absmax)
    expected = bnb.dequantize_4bit(packed, state).reshape(weight.shape)
    assert torch.equal(dequantized(weight, fmt, torch.bfloat16), expected)


def test_tables_equal_those_of_bitsandbytes() -> None:
    assert torch.equal(dynamic_table(), bnb.create_dynamic_map())
    for kind in ("nf4", "fp4"):
        assert torch.equal(table(kind), bnb.get_4bit_type(kind, device="cpu"))
