"""Figures of sampled rows, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.measure.weights.sample import FIRST, GROUP, RUN, sample_of, sampled_rows
from tests.quant.adversarial import normal


def rows(width: int = 1100, count: int = 16, seed: int = 0) -> np.ndarray:
    return (normal(count, width, seed=seed) * 0.02).to(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("height", [0, 1, 5, 16, 17, 1000])
def test_sampled_rows_are_spread_over_all(height: int) -> None:
    found = sampled_rows(height)
    assert found == sorted(set(found))
    assert len(found) == min(16, height)
    assert all(0 <= row < height for row in found)


@pytest.mark.parametrize("width", [1100, 256, 64, 40])
def test_figures_are_those_of_loops(width: int) -> None:
    some = rows(width)
    found = sample_of(some)
    runs = [row[at : at + RUN] for row in some for at in range(0, width - RUN + 1, RUN)]
    full = [run for run in runs if np.count_nonzero(run) >= RUN - RUN // 8]
    assert found.levels == max(len(set(run.tolist())) for run in full)
    assert found.row_levels == max(len(set(row[:FIRST].tolist())) for row in some)
    size = GROUP if width >= GROUP else width // 4 * 4

    def noise(part: int) -> float:
        total = count = 0.0
        for row in some:
            for first in range(0, width // size * size, part):
                each = row[first : first + part].astype(np.float64)
                total += (max(each.max(), 0) - min(each.min(), 0)) ** 2
                count += 1
        return total / count

    assert found.noise_g64 == pytest.approx(noise(size // 2) / noise(size), rel=1e-5)
    assert found.noise_g32 == pytest.approx(noise(size // 4) / noise(size), rel=1e-5)
    assert found.mixed == 0


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 7), (torch.float16, 10), (torch.float8_e4m3fn, 3)]
)
def test_the_mantissa_that_is_needed(dtype: torch.dtype, bits: int) -> None:
    some = normal(16, 256).to(dtype).float().numpy()
    assert sample_of(some).mantissa == bits


def test_parts_of_two_sizes_are_counted_and_a_single_channel_is_not() -> None:
    some = rows(1024)
    for change, mixed in (
        (np.where(np.arange(1024) % 128 < 32, 8.0, 1.0), 1.0),
        (np.where(np.arange(1024) % 2, 8.0, 1.0), 1.0),
        (np.where(np.arange(1024) < 512, 8.0, 1.0), 0.0),  # no group has both
        (np.where(np.arange(1024) % 128 == 5, 64.0, 1.0), 0.0),
        (np.where(np.arange(1024) == 5, 30.0, 1.0), 0.0),
    ):
        assert sample_of(some * change.astype(np.float32)).mixed == pytest.approx(mixed)
    half = some.copy()
    half[::2, :32] *= 8
    assert sample_of(half).mixed == pytest.approx(0.5 / 8)


def test_rows_that_are_not_finite_do_not_count_and_nothing_is_known_of_zeros() -> None:
    some = rows()
    broken = some.copy()
    broken[3, 5], broken[7, 0] = math.nan, math.inf
    assert sample_of(broken) == sample_of(np.delete(some, [3, 7], 0))
    nothing = sample_of(np.zeros((16, 64), np.float32))
    assert (nothing.levels, nothing.mantissa, nothing.mixed) == (0, -1, 0.0)
    assert math.isnan(nothing.noise_g32)
