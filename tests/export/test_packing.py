"""Codes are packed as compressed-tensors packs them, byte for byte, in either of its ways."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from engine.export import packing
from engine.export.packing import is_dense, packed, packing_version, words_for


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
    found = packed(codes, bits, dense=is_dense())
    assert found.dtype == torch.int32
    assert torch.equal(found, pack_to_int32(codes, bits))
    assert torch.equal(unpack_from_int32(found, bits, codes.shape), codes)
    along_rows = packed(codes.T, bits, dense=is_dense()).T
    assert torch.equal(along_rows, pack_to_int32(codes, bits, packed_dim=0))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_extreme_codes_fill_and_empty_a_word(bits: int) -> None:
    each = 32 // bits
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    lowest, highest = (torch.full((1, each), code, dtype=torch.int8) for code in (low, high))
    assert packed(lowest, bits, dense=False).item() == 0
    word = packed(highest, bits, dense=False).item()
    assert int(word) & 0xFFFFFFFF == (1 << each * bits) - 1


def read_bits(words: torch.Tensor, bits: int, count: int, *, dense: bool) -> list[int]:
    """Codes of one row, bit by bit: of the whole row without gaps, or of each word."""
    row = [int(word) & 0xFFFFFFFF for word in words]
    if dense:
        whole = sum(word << 32 * at for at, word in enumerate(row))
        raw = [whole >> bits * at for at in range(count)]
    else:
        each = 32 // bits
        raw = [row[at // each] >> bits * (at % each) for at in range(count)]
    return [(code & (1 << bits) - 1) - (1 << bits - 1) for code in raw]


@given(
    bits=st.integers(1, 8),
    columns=st.integers(1, 100),
    dense=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_either_packing_is_read_bit_by_bit(bits: int, columns: int, dense: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (2, columns), generator=generator, dtype=torch.int8)
    found = packed(codes, bits, dense=dense)
    assert found.shape == (2, words_for(columns, bits, dense=dense))
    for row, expected in zip(found, codes, strict=True):
        assert read_bits(row, bits, columns, dense=dense) == expected.tolist()


def test_the_two_are_the_same_where_the_bits_divide_a_word_and_not_elsewhere() -> None:
    for bits in range(1, 9):
        codes = torch.zeros(1, 64, dtype=torch.int8)
        one, other = (packed(codes, bits, dense=dense) for dense in (False, True))
        assert torch.equal(one, other) == (32 % bits == 0)


@pytest.mark.parametrize(
    ("installed", "dense", "stamp"),
    [
        ("0.17.1", False, "0.17.1"),
        ("0.9.4", False, "0.17.1"),
        ("0.18.0", True, "0.18.0"),
        ("0.20.1a20260901", True, "0.18.0"),
        ("1.0.0", True, "0.18.0"),
        (None, True, "0.18.0"),
    ],
)
def test_what_the_installed_version_reads_is_written_and_stamped(
    installed: str | None, dense: bool, stamp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(_package: str) -> str:
        if installed is None:
            raise packing.PackageNotFoundError
        return installed

    monkeypatch.setattr(packing, "version", version)
    is_dense.cache_clear()
    try:
        assert is_dense() is dense
        assert packing_version() == stamp
    finally:
        is_dense.cache_clear()
