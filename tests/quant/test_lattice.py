"""The lattice codebook, its nearest codewords, and the rotation before it."""

from __future__ import annotations

import pytest
import torch

from engine.formats.grammar import parse_format
from engine.quant.data_free.hadamard import rotate, rotate_back, signs
from engine.quant.lattice import RMS, codebook, nearest_codewords, patterns, quantize_lattice
from engine.quant.quantize import dequantized
from tests.quant.adversarial import normal

FMT = parse_format("e8-2+hadamard")


def test_the_codebook_is_a_shifted_ball_of_e8() -> None:
    words = codebook()
    assert words.unique(dim=0).shape == (1 << 16, 8)
    for half, shift in ((words[: 1 << 15], 0.25), (words[1 << 15 :], -0.25)):
        lattice = half - shift
        assert torch.equal((lattice - 0.5).round(), lattice - 0.5)  # half-integers
        assert (lattice.sum(1) % 2 == 0).all()  # whose sum is even
    norms = patterns().square().sum(1)
    assert (norms <= 10).sum() == 227
    assert (norms[227:] == 12).all()
    assert patterns().unique(dim=0).shape == (256, 8)


@pytest.mark.parametrize("spread", [0.3, 1.03, 3.0])
def test_codes_are_the_nearest_of_all_codewords(spread: float) -> None:
    vectors = normal(60, 40, seed=3) * 20 * spread
    codes = nearest_codewords(vectors, torch.ones(1, 1)).to(torch.int64) & 0xFFFF
    points = vectors.view(-1, 8).double()
    distances = torch.cdist(points, codebook().double())
    chosen = distances.gather(1, codes.view(-1, 1))[:, 0]
    assert torch.allclose(chosen, distances.amin(1), rtol=1e-6, atol=1e-6)


def test_normal_weights_lose_what_the_paper_says() -> None:
    """E8P is near .09 of the variance at 2 bits; a scalar quantiser is at .1175 (Max 1960)."""
    weight = normal(64, 512, seed=4)
    noise = (weight - dequantized(weight, FMT, torch.float16)).square().mean()
    assert 0.085 < noise / weight.square().mean() < 0.095


def test_outliers_are_spread_before_they_are_rounded() -> None:
    weight = normal(64, 512, seed=5)
    weight[:, 7] *= 30
    scale = (weight.square().mean().sqrt() / RMS).reshape(1, 1)
    codes = nearest_codewords(weight, scale).to(torch.int64) & 0xFFFF
    as_it_is = codebook()[codes].flatten(1) * scale
    rotated = dequantized(weight, FMT, torch.float16)
    assert (weight - rotated).norm() < 0.5 * (weight - as_it_is).norm()


@pytest.mark.parametrize("shape", [(16, 256), (12, 96), (7, 40), (1, 8), (5, 3)])
def test_the_rotation_is_orthogonal(shape: tuple[int, int]) -> None:
    weight = normal(*shape, seed=6)
    turned = weight.clone()
    rotate(turned)
    assert not torch.allclose(turned, weight)
    assert abs(float(turned.norm() / weight.norm()) - 1) < 1e-6
    rotate_back(turned)
    assert torch.allclose(turned, weight, rtol=0, atol=1e-6)
    basis = torch.eye(shape[1])
    rotate(basis)
    assert torch.allclose(basis @ basis.T, torch.eye(shape[1]), rtol=0, atol=1e-6)


def test_signs_are_fixed_and_balanced() -> None:
    found = signs(1 << 14, torch.device("cpu"))
    assert torch.equal(found.abs(), torch.ones(1 << 14))
    assert abs(float(found.mean())) < 0.03
    assert abs(float((found[1:] * found[:-1]).mean())) < 0.03
    assert torch.equal(signs(10, torch.device("cpu")), found[:10])


def test_each_expert_has_its_own_scale() -> None:
    weight = normal(3, 16, 64) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    found = quantize_lattice(weight)
    assert found.codes.shape == (3, 16, 8)
    assert found.scale.shape == (3, 1, 1)
