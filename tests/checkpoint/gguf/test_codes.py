"""Codes out of blocks of ggml, against what the gguf package makes of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from engine.checkpoint.gguf.codes import codes_of

ONE = [0x00, 0x3C]
BLOCKS = 64
UNIT: dict[str, tuple[dict[int, list[int]], float, float]] = {
    "q4_0": ({0: ONE}, 1, -8),
    "q4_1": ({0: ONE, 2: [0, 0]}, 1, 0),
    "q5_0": ({0: ONE}, 1, -16),
    "q5_1": ({0: ONE, 2: [0, 0]}, 1, 0),
    "q8_0": ({0: ONE}, 1, -128),
    "q2_k": ({0: [1] * 16, 80: ONE, 82: [0, 0]}, 1, 0),
    "q3_k": ({96: [0] * 12, 108: ONE}, -32, 128),
    "q4_k": ({0: ONE, 2: [0, 0], 4: [1] * 4 + [0] * 4 + [1] * 4}, 1, 0),
    "q5_k": ({0: ONE, 2: [0, 0], 4: [1] * 4 + [0] * 4 + [1] * 4}, 1, 0),
    "q6_k": ({192: [1] * 16, 208: ONE}, 1, -32),
    "tq2_0": ({64: ONE}, 1, -1),
}
"""Bytes that make every scale one, and what a code then is: its factor and its summand."""


@pytest.mark.parametrize("kind", UNIT)
def test_each_block_has_the_codes_that_the_package_reads(kind: str) -> None:
    known = gguf.GGMLQuantizationType[kind.upper()]
    count, size = gguf.GGML_QUANT_SIZES[known]
    blocks = np.random.default_rng(0).integers(0, 256, (BLOCKS, size), np.uint8)
    written, factor, summand = UNIT[kind]
    for at, some in written.items():
        blocks[:, at : at + len(some)] = some
    found = codes_of(kind, torch.from_numpy(blocks))
    assert found is not None
    assert found.codes.shape == (BLOCKS, count)
    assert int(found.codes.max()) < found.levels
    assert torch.equal(found.scale, torch.ones(BLOCKS, 1))
    values = gguf.quants.dequantize(blocks, known).reshape(BLOCKS, count)
    ours = found.codes.numpy().astype(np.float32) * factor + summand
    assert np.array_equal(np.sort(ours, axis=1), np.sort(values, axis=1))


@pytest.mark.parametrize("kind", ["iq4_nl", "iq4_xs", "mxfp4"])
def test_codes_of_a_table_are_as_many_as_there_are(kind: str) -> None:
    known = gguf.GGMLQuantizationType[kind.upper()]
    count, size = gguf.GGML_QUANT_SIZES[known]
    rows = torch.randint(0, 256, (BLOCKS, size), dtype=torch.uint8)
    found = codes_of(kind, rows)
    assert found is not None
    assert found.codes.shape == (BLOCKS, count)
    assert found.codes.unique().tolist() == list(range(16))


def test_a_type_whose_scales_are_apart_has_none() -> None:
    assert codes_of("iq1_m", torch.zeros(1, 56, dtype=torch.uint8)) is None
