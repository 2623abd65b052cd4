"""Kernels: every rule, by a format and shape on either side of it."""

from __future__ import annotations

import pytest

from engine.formats.grammar import parse_format
from engine.formats.kernels import KERNELS, kernel_named, kernels_for

SHAPE = (4096, 4096)


@pytest.mark.parametrize(
    ("format", "shape", "expected"),
    [
        ("int4-g128", SHAPE, "marlin machete exllamav2"),
        ("int4-g64-sym", SHAPE, "marlin machete exllamav2"),
        ("int4-g32", SHAPE, "marlin exllamav2"),
        ("int4-g16", SHAPE, ""),
        ("int4-channel", SHAPE, "marlin machete exllamav2"),
        ("int4-tensor", SHAPE, ""),
        ("int3-g128", SHAPE, ""),
        ("int8", SHAPE, "marlin machete"),
        ("int8-asym", SHAPE, "machete"),
        ("int4-g128-sym+gptq:actorder", SHAPE, "marlin machete exllamav2"),
        ("int4-g128+gptq:actorder", SHAPE, "machete exllamav2"),
        ("int4-g128+gptq:actorder:static", SHAPE, "marlin machete exllamav2"),
        ("int4-g128+awq+clip", SHAPE, "marlin machete exllamav2"),
        ("int4-g128+awq:online", SHAPE, ""),
        ("int4-g128+hadamard", SHAPE, ""),
        ("int4-g128+hqq", SHAPE, ""),
        ("int8+a8", SHAPE, "cutlass-int8 bitsandbytes"),
        ("int8+smooth.5+a8:static", SHAPE, "cutlass-int8"),
        ("int8-g128+a8", SHAPE, ""),
        ("int8+outlier6", SHAPE, ""),
        ("int8+outlier6+a8", SHAPE, "bitsandbytes"),
        ("fp8-e4m3", SHAPE, "marlin cutlass-fp8"),
        ("fp8-e4m3-block128", SHAPE, "marlin"),
        ("fp8-e5m2", SHAPE, ""),
        ("mxfp4", SHAPE, "marlin"),
        ("nvfp4", SHAPE, "marlin"),
        ("nf4", SHAPE, "bitsandbytes"),
        ("nf4-g128:dq", SHAPE, "bitsandbytes"),
        ("kmeans4", SHAPE, ""),
        ("e8-2+hadamard", SHAPE, ""),
        ("q4_k", SHAPE, "llama.cpp"),
        ("iq4_xs", SHAPE, "llama.cpp"),
        ("iq2_xxs", SHAPE, "llama.cpp"),
        ("iq3_s+imatrix", SHAPE, "llama.cpp"),
        ("bf16", SHAPE, "dense"),
        # divisibility
        ("int4-g64", (4096, 96), ""),
        ("int4-g32", (100, 96), "marlin"),
        ("int4-g32", (96, 96), "marlin exllamav2"),
        ("int4-g64", (192, 4096), "marlin exllamav2"),
        ("int4-channel", (128, 32), "marlin exllamav2"),
        ("int4-g32-sym+gptq:actorder", (96, 4096), "exllamav2"),
        ("int4-g32-sym+gptq:actorder", (4096, 192), "exllamav2"),
        ("int8+a8", (100, 4096), "bitsandbytes"),
        ("int8+a8", (16, 18), ""),
        ("fp8-e4m3", (16, 18), "marlin"),
        ("q4_k", (64, 128), ""),
        ("q8_0", (64, 96), "llama.cpp"),
        # experts
        ("int4-g128", (8, 768, 2048), "marlin"),
        ("int4-g128", (8, 2048, 768), "marlin"),
        ("int4-g128", (8, 96, 2048), ""),
        ("q4_k", (8, 768, 2048), "llama.cpp"),
        ("nf4", (8, 768, 2048), ""),
    ],
)
def test_a_weight_is_taken_by_the_kernels_whose_rules_allow_it(
    format: str, shape: tuple[int, ...], expected: str
) -> None:
    assert " ".join(kernels_for(format, shape)) == expected


def test_every_kernel_says_where_its_rules_are_from_and_why_it_refuses() -> None:
    for kernel in KERNELS:
        assert kernel.source
        assert kernel.runs_on
        why = kernel.why_not(parse_format("kmeans3"), SHAPE)
        assert why, kernel.name
    marlin = kernel_named("marlin")
    assert marlin.why_not(parse_format("int4-g256"), SHAPE) == (
        "it takes groups of 32, 64 or 128, or whole rows"
    )
    assert marlin.why_not(parse_format("int8-asym"), SHAPE) == (
        "of 8 bits it takes symmetric codes alone: add -sym"
    )
