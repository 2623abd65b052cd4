"""Codes are packed as compressed-tensors packs them, byte for byte."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from engine.export.packing import packed


@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_packed_codes_equal_compressed_tensors(
    bits: int, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (rows, columns), generator=generator, dtype=torch.int8)
    found = packed(codes, bits)
    assert found.dtype == torch.int32
    assert torch.equal(found, pack_to_int32(codes, bits))
    assert torch.equal(unpack_from_int32(found, bits, codes.shape), codes)
    assert torch.equal(packed(codes.T, bits).T, pack_to_int32(codes, bits, packed_dim=0))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_extreme_codes_fill_and_empty_a_word(bits: int) -> None:
    each = 32 // bits
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert packed(torch.full((1, each), low, dtype=torch.int8), bits).item() == 0
    word = packed(torch.full((1, each), high, dtype=torch.int8), bits).item()
    assert int(word) & 0xFFFFFFFF == (1 << each * bits) - 1
