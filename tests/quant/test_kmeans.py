"""Clusters of every row: close to the optimum, the same every time, outliers exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.quant.kmeans import fit_centroids, quantize_kmeans
from engine.quant.quantize import dequantized
from tests.quant.adversarial import adversarial, normal

FACTOR = 1.01
"""Squared error over the least possible, at most, for many rows; 1.05 for any one of them."""


def _least_error(values: Tensor, weights: Tensor, clusters: int) -> float:
    """The least weighted squared error of any clustering, by dynamic programming in float64.

    ``best[j]`` is that of the first ``j`` sorted values; a cluster is a run of them.
    """
    order = values.argsort()
    x, w = values[order].double().numpy(), weights[order].double().numpy()
    m, s, q = (np.concatenate([[0], np.cumsum(w * x**power)]) for power in range(3))
    count = len(x)
    first, last = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
    mass = m[last] - m[first]
    with np.errstate(all="ignore"):
        within = q[last] - q[first] - np.where(mass > 0, (s[last] - s[first]) ** 2 / mass, 0)
    cost = np.where(first <= last, within, np.inf)
    best = cost[0]
    for _ in range(clusters - 1):
        best = (best[:, None] + cost).min(0)
    return float(best[-1])


def _error(values: Tensor, weights: Tensor, centroids: Tensor) -> float:
    distance = (values.double()[:, None] - centroids[None, :]).square().amin(1)
    return float((weights.double() * distance).sum())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "fisher"])
@pytest.mark.parametrize("count", [100, 160, 600])
@pytest.mark.parametrize("clusters", [8, 16])
def test_the_error_is_close_to_the_least_possible(
    clusters: int, count: int, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.cat(
        [
            normal(12, count, seed=1),
            normal(12, count, seed=2) ** 3 * 100,
            torch.rand(6, count, generator=generator),
            (torch.rand(6, count, generator=generator) * 12).round() / 3,
        ]
    )
    weights = (
        torch.rand(rows.shape, generator=generator) ** 4 if weighted else torch.ones(36, count)
    )
    found = fit_centroids(rows, weights, clusters)
    errors = torch.tensor(
        [_error(*row) for row in zip(rows, weights, found, strict=True)], dtype=torch.float64
    )
    least = torch.tensor(
        [_least_error(row, weight, clusters) for row, weight in zip(rows, weights, strict=True)],
        dtype=torch.float64,
    )
    assert (errors >= least * (1 - 1e-9) - 1e-10).all()
    assert float(errors.sum()) <= FACTOR * float(least.sum())
    assert (errors <= 1.05 * least + 1e-10).all()


def test_no_centroid_moves_once_it_is_the_mean_of_its_cluster() -> None:
    row = normal(1, 300, seed=4)
    found = fit_centroids(row, torch.ones_like(row), 16)[0]
    nearest = (row[0].double()[:, None] - found).abs().argmin(1)
    means = torch.stack([row[0].double()[nearest == i].mean() for i in range(16)])
    assert torch.allclose(means, found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("text", ["kmeans3", "kmeans4", "kmeans4:sparse=1%"])
def test_codes_are_the_nearest_stored_centroids(text: str) -> None:
    fmt = parse_format(text)
    for which, exact in adversarial(6, 96).items():
        weight = exact.clamp(-6e4, 6e4)
        found = quantize_kmeans(weight, fmt, torch.float16)
        values = found.centroids.float()
        assert values.shape == (6, 1 << fmt.bits)
        assert (values.diff(dim=1) >= 0).all(), which
        approx = found.approx()
        nearest = (weight[..., None] - values[:, None]).abs().amin(-1)
        assert ((weight - approx).abs() <= nearest * (1 + 1e-6)).all(), which
        assert torch.equal(dequantized(weight, fmt, torch.float16), approx)


def test_importance_moves_centroids_to_what_matters() -> None:
    weight = normal(8, 512, seed=5)
    importance = torch.rand(8, 512, generator=torch.Generator().manual_seed(6)) ** 6
    fmt = parse_format("kmeans3")
    with_it = quantize_kmeans(weight, fmt, torch.float16, importance=importance).approx()
    without = quantize_kmeans(weight, fmt, torch.float16).approx()

    def error(approx: Tensor) -> float:
        return float((importance * (weight - approx).square()).sum())

    assert error(with_it) < 0.9 * error(without)


def test_a_row_of_few_values_is_exact() -> None:
    weight = torch.tensor([0.5, -0.25, 1.0, 2.0, -3.0]).repeat(4, 20)
    for text in ("kmeans3", "kmeans4"):
        assert torch.equal(dequantized(weight, parse_format(text), torch.float16), weight)


@pytest.mark.parametrize("share", [0.1, 1.0, 37.0])
def test_outliers_are_the_greatest_and_kept_exactly(share: float) -> None:
    weight = normal(30, 100, seed=7).to(torch.bfloat16)  # with many ties
    fmt = parse_format(f"kmeans3:sparse={share}%")
    found = quantize_kmeans(weight, fmt, torch.bfloat16)
    kept = round(share / 100 * weight.numel())
    assert len(found.outliers) == len(found.columns) == int(found.counts.sum()) == kept
    magnitude = weight.float().abs()
    least = magnitude.flatten().topk(kept).values[-1]
    approx = found.approx()
    assert torch.equal(approx[magnitude > least], weight.float()[magnitude > least])
    assert torch.equal(found.outliers.float().abs().sort().values[0], least)
    plain = dequantized(weight, parse_format("kmeans3"), torch.bfloat16)
    assert (weight.float() - approx).norm() < (weight.float() - plain).norm()


@pytest.mark.parametrize("text", ["kmeans4", "kmeans4:sparse=1%"])
def test_a_value_beyond_its_dtype_names_the_tensor(text: str) -> None:
    weight = normal(4, 64)
    weight[1, 2] = 1e6
    with pytest.raises(FormatError, match=r"^up: .*float16.*1e"):
        dequantized(weight, parse_format(text), torch.float16, name="up")
    assert dequantized(weight, parse_format(text), torch.bfloat16).isfinite().all()
