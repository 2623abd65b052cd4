"""Tiles of EXL3 are decoded as its own headers decode them; rotations are those of Sylvester."""

from __future__ import annotations

import pytest
import torch

from engine.checkpoint.packed.trellis import Codebook, codebook, decoded, rotated
from tests.checkpoint.quantised.fixtures import MODULE, cases, digest, tensors


@pytest.mark.parametrize("name", list(cases("exllamav3")))
def test_tiles_are_what_the_tool_decodes(name: str) -> None:
    case = cases("exllamav3")[name]
    trellis = tensors(case)[f"{MODULE}.trellis"]
    down, across, length = trellis.shape
    book: Codebook = "mcg" if "mcg" in name else "mul1" if "mul1" in name else "3inst"
    tiles = decoded(trellis.view(-1, length), book).view(down, across, 16, 16)
    whole = tiles.transpose(1, 2).reshape(16 * down, 16 * across).to(torch.float16)
    assert digest(whole) == case["before"]["sha256"]


@pytest.mark.parametrize("name", ["3inst", "mcg", "mul1"])
def test_numbers_are_about_normal(name: Codebook) -> None:
    """The codebooks imitate normal numbers: a wrong factor or mask would not."""
    book = codebook(name)
    assert book.shape == (65536,)
    assert abs(float(book.mean())) < 0.02
    assert 0.95 < float(book.std()) < 1.4


def test_a_rotation_is_sylvesters_matrix() -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 128, 5, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    matrix = one
    while len(matrix) < 128:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    expected = matrix @ whole / 128**0.5
    torch.testing.assert_close(rotated(whole).double(), expected, atol=1e-5, rtol=1e-5)
