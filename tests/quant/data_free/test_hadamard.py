"""``+hadamard`` on any format: orthogonal, incoherent, and worth it where weights stand out."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import hadamard as walsh
from torch import Tensor

from engine.formats.grammar import parse_format
from engine.quant.data_free.hadamard import Rotated, rotate, rotate_back, signs
from engine.quant.input_statistics import output_error
from engine.quant.quantize import dequantized, stored_form
from engine.quant.solve import solved
from tests.quant.adversarial import normal
from tests.quant.correlated import correlated


def rotation(width: int) -> Tensor:
    """``V`` in float64, written down: signs, then blocks of a Sylvester matrix."""
    length = width & -width
    block = torch.from_numpy(walsh(length)).double() / length**0.5
    blocks = torch.block_diag(*[block] * (width // length))
    return signs(width, torch.device("cpu")).double()[:, None] * blocks


def with_outliers(out: int, row: int, seed: int) -> Tensor:
    weight = normal(out, row, seed=seed)
    weight[:, 5] *= 12
    weight[3, ::31] *= 20
    return weight


@pytest.mark.parametrize("shape", [(16, 256), (12, 96), (7, 40), (64, 768), (5, 3)])
def test_the_rotation_is_orthogonal_and_that_of_the_formula(shape: tuple[int, int]) -> None:
    weight = normal(*shape, seed=1)
    U, V = rotation(shape[0]), rotation(shape[1])
    for matrix in (U, V):
        eye = torch.eye(len(matrix), dtype=torch.float64)
        assert (matrix @ matrix.T - eye).abs().max() < 1e-6
    turned = weight.clone()
    rotate(turned)
    assert (turned - U.T @ weight.double() @ V).abs().max() < 1e-6
    H = correlated(shape[1], 0.3, seed=1)
    both = H.clone()
    rotate(both)
    expected = V.T @ H.double() @ V
    assert (both - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("seed", range(3))
def test_no_weight_stands_out_after_it(seed: int) -> None:
    weight = with_outliers(64, 256, seed)
    turned = weight.clone()
    rotate(turned)
    before, after = (float(w.abs().max() / w.square().mean().sqrt()) for w in (weight, turned))
    assert before > 10
    assert after < 6  # 4.2 is what 16,384 normal numbers have
    assert after < 0.5 * before


@pytest.mark.parametrize("text", ["int3-g128", "int4-g128", "int3-g64-sym", "int4-channel"])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_falls_where_outliers_were(text: str, seed: int) -> None:
    weight = with_outliers(64, 256, seed)
    plain = dequantized(weight, parse_format(text), torch.float16)
    turned = dequantized(weight, parse_format(f"{text}+hadamard"), torch.float16)
    assert (turned - weight).norm() < 0.8 * (plain - weight).norm()


@pytest.mark.parametrize(
    "text", ["int4-g32", "int3-g64+clip", "nf4:dq", "fp8-e4m3", "mxfp4", "q4_0", "kmeans3"]
)
def test_it_is_the_format_between_two_rotations(text: str) -> None:
    weight = normal(32, 96, seed=2)
    turned = weight.clone()
    rotate(turned)
    expected = dequantized(turned, parse_format(text), torch.float16)
    rotate_back(expected)
    name, *rest = text.split("+")
    fmt = parse_format("+".join([name, "hadamard", *rest]))
    assert torch.equal(dequantized(weight, fmt, torch.float16), expected)
    stored = stored_form(weight, fmt, torch.float16)
    assert isinstance(stored, Rotated)
    U, V = rotation(32), rotation(96)
    back = U @ stored.stored.approx().double() @ V.T
    assert (back - expected).abs().max() < 1e-6


@pytest.mark.parametrize("text", ["int3-g32", "int4-channel+clip", "nvfp4", "nf4"])
def test_gptq_in_the_rotated_space_is_gptq_of_rotated_weights_and_inputs(text: str) -> None:
    weight, H = with_outliers(32, 64, 7), correlated(64, 0.5, seed=7)
    U, V = rotation(32), rotation(64)
    name, *rest = text.split("+")
    inner, _ = solved(
        (U.T @ weight.double() @ V).float(),
        (V.T @ H.double() @ V).float(),
        parse_format(f"{text}+gptq"),
        torch.float16,
    )
    fmt = parse_format("+".join([name, "hadamard", *rest, "gptq"]))
    found, notes = solved(weight, H, fmt, torch.float16)
    # Float32 may break a tie the other way; the error tells that it is the same search.
    expected = output_error((U @ inner.double() @ V.T).float() - weight, H)
    assert output_error(found - weight, H) == pytest.approx(expected, rel=0.05)
    assert notes == ()
    alone = dequantized(weight, parse_format("+".join([name, "hadamard", *rest])), torch.float16)
    assert output_error(found - weight, H) < 0.8 * output_error(alone - weight, H)
    actorder, _ = solved(weight, H, parse_format(f"{fmt}{_ordered(name)}"), torch.float16)
    assert output_error(actorder - weight, H) < 0.8 * output_error(alone - weight, H)


def _ordered(name: str) -> str:
    return ":actorder" if name.startswith("int") else ":actorder:static"
