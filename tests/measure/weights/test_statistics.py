"""Numbers about one weight, against numpy and scipy in float64."""

from __future__ import annotations

import math

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from engine.measure.weights import chunks
from engine.measure.weights.statistics import (
    CHANNEL_FACTOR,
    MOST_CHANNELS,
    compare,
    histogram,
    weight_errors,
    weight_statistics,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(params=[2**17, 64], ids=["whole", "in chunks"], autouse=True)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every number is the same in one chunk and in many, rows cut too."""
    monkeypatch.setattr(chunks, "_CHUNK", request.param)
    return int(request.param)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Heavy tails, off centre."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_t(4, shape) * 0.02 + 0.003)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (3, 20, 32), (1, 500), (500, 1), (17,)], ids=str)
def test_spread_equals_numpy_and_scipy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = drawn(*shape).to(dtype)
    w = weight.double().numpy()
    found = weight_statistics(weight)
    assert found.entries == w.size
    assert found.mean == pytest.approx(w.mean(), rel=1e-12)
    assert found.std == pytest.approx(w.std(), rel=1e-12)
    assert found.kurtosis == pytest.approx(stats.kurtosis(w, axis=None), rel=1e-9)
    assert found.max_abs == np.abs(w).max()


@pytest.mark.parametrize("sigma", [2.0, 3.0, 4.0, 5.5])
def test_outliers_range_and_waste_equal_their_definitions(sigma: float) -> None:
    weight = drawn(64, 80, seed=1).float()
    w = weight.double().numpy()
    far = np.abs(w - w.mean())
    found = weight_statistics(weight, sigma)
    for at in found.outliers_at:
        assert at.count == (far > at.sigma * w.std()).sum()
        assert at.fraction == at.count / w.size
    assert [at.sigma for at in found.outliers_at] == sorted({3.0, 6.0, sigma})
    assert found.outliers.sigma == sigma
    assert found.outliers.count > 0
    inliers = w[far <= sigma * w.std()]
    ratio = np.ptp(w) / np.ptp(inliers)
    assert found.range_ratio == pytest.approx(ratio, rel=1e-12)
    assert found.waste == pytest.approx(1 - 1 / ratio, rel=1e-12)


def test_a_weight_without_outliers_wastes_nothing() -> None:
    found = weight_statistics(torch.linspace(-1, 1, 400).reshape(20, 20))
    assert [at.count for at in found.outliers_at] == [0, 0, 0]
    assert (found.range_ratio, found.waste) == (1.0, 0.0)


def test_a_small_spread_far_from_zero_is_not_lost() -> None:
    weight = (1000 + drawn(50, 60)).float()
    w = weight.double().numpy()
    found = weight_statistics(weight)
    assert found.std == pytest.approx(w.std(), rel=1e-9)
    assert found.kurtosis == pytest.approx(stats.kurtosis(w, axis=None), rel=1e-6)


def test_entries_near_the_end_of_float32_do_not_overflow() -> None:
    weight = (drawn(20, 20) * 1e37).float()
    w = weight.double().numpy()
    assert weight_statistics(weight).kurtosis == pytest.approx(stats.kurtosis(w, axis=None))


def test_nan_and_infinities_are_counted_and_left_out() -> None:
    weight = drawn(30, 40, seed=2).float()
    weight[3, 4] = weight[29, 39] = math.nan
    weight[5, 6], weight[7, 7], weight[8] = math.inf, -math.inf, math.inf
    w = weight.double().numpy()
    w = w[np.isfinite(w)]
    found = weight_statistics(weight)
    assert (found.nan, found.inf, found.entries) == (2, 42, w.size)
    assert found.mean == pytest.approx(w.mean(), rel=1e-12)
    assert found.std == pytest.approx(w.std(), rel=1e-12)
    assert found.kurtosis == pytest.approx(stats.kurtosis(w), rel=1e-9)
    assert found.max_abs == np.abs(w).max()
    far = np.abs(w - w.mean())
    assert found.outliers.count == (far > 4 * w.std()).sum()
    ratio = np.ptp(w) / np.ptp(w[far <= 4 * w.std()])
    assert found.range_ratio == pytest.approx(ratio, rel=1e-12)
    assert found.zero_rows == 0


def test_zero_rows_and_dead_columns_are_zero_throughout() -> None:
    weight = drawn(30, 90).half() + 1
    weight[4] = weight[20] = 0
    weight[:, 7] = 0
    weight[:, 70] = 0
    weight[0, 70] = 1e-7
    weight[5] = math.nan
    found = weight_statistics(weight)
    assert (found.zero_rows, found.dead_columns) == (2, 0)
    weight[5] = 1
    weight[:, 7] = -0.0
    assert weight_statistics(weight).dead_columns == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_denormals_are_told_by_the_stored_dtype(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    weight = torch.zeros(20, 30, dtype=dtype)
    weight[0, :4] = torch.tensor([tiny, -tiny, 1.0, 0.0], dtype=dtype)
    weight[9, 5:8] = torch.tensor([tiny / 2, -tiny / 4, tiny / 8], dtype=dtype)
    assert weight_statistics(weight).denormals == 3


def test_outlier_channels_are_those_whose_rms_dwarfs_the_median() -> None:
    weight = torch.from_numpy(np.random.default_rng(3).normal(0, 0.02, (200, 96))).float()
    weight[:, 11] *= 12
    weight[:, 90] *= 6
    weight[17] *= 9
    weight[5, 5] = 0.1  # one far entry does not make a channel
    w = weight.double().numpy()
    found = weight_statistics(weight)
    assert [c.index for c in found.columns] == [11, 90]
    assert [c.index for c in found.rows] == [17]
    assert (found.outlier_columns, found.outlier_rows) == (2, 1)
    rms = np.sqrt(((w - w.mean()) ** 2).mean(0))
    assert found.columns[0].ratio == pytest.approx(rms[11] / np.median(rms), rel=0.02)
    assert found.columns[0].ratio > CHANNEL_FACTOR
    assert found.columns[0].peak == pytest.approx(
        np.abs(w[:, 11] - w.mean()).max() / w.std(), rel=1e-9
    )


def test_no_more_channels_are_named_than_promised_but_all_are_counted() -> None:
    weight = drawn(50, 100).float()
    weight[:, :30] *= 50
    found = weight_statistics(weight)
    assert found.outlier_columns == 30
    assert len(found.columns) == MOST_CHANNELS
    peaks = [channel.peak for channel in found.columns]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_a_constant_weight_has_no_spread_and_no_outliers(value: float) -> None:
    found = weight_statistics(torch.full((37, 41), value, dtype=torch.float64))
    assert (found.std, found.outliers.count, found.range_ratio) == (0, 0, 1.0)
    assert math.isnan(found.kurtosis)
    assert found.zero_rows == (37 if value == 0 else 0)
    assert found.columns == ()


def test_one_far_entry_among_equal_ones_wastes_the_whole_grid() -> None:
    weight = torch.zeros(30, 30)
    weight[1, 1] = 5
    found = weight_statistics(weight)
    assert found.outliers.count == 1
    assert (found.range_ratio, found.waste) == (math.inf, 1.0)


@pytest.mark.parametrize("weight", [torch.full((3, 4), math.nan), torch.empty(0, 4)], ids=str)
def test_a_weight_with_no_finite_entry_has_no_statistics(weight: torch.Tensor) -> None:
    found = weight_statistics(weight)
    assert found.entries == 0
    assert math.isnan(found.mean)
    assert found.outliers.fraction == 0
    assert histogram(weight, 8).counts == (0,) * 8
    assert compare(weight, weight).frobenius == 0


def test_codes_are_not_weights() -> None:
    with pytest.raises(ValueError, match="int8"):
        weight_statistics(torch.zeros(2, 2, dtype=torch.int8))


# errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_equal_numpy(dtype: torch.dtype) -> None:
    weight = drawn(3, 20, 32).to(dtype)
    approx = weight.float() + drawn(3, 20, 32, seed=9).float() * 0.1
    w, gap = weight.double().numpy(), (weight.double() - approx.double()).numpy()
    found = compare(weight, approx)
    norm = math.sqrt((w**2).sum())
    assert found.frobenius == pytest.approx(math.sqrt((gap**2).sum()), rel=1e-12)
    assert found.relative == pytest.approx(math.sqrt((gap**2).sum()) / norm, rel=1e-12)
    assert found.max_abs == np.abs(gap).max()
    assert found.mean_abs == pytest.approx(np.abs(gap).mean(), rel=1e-12)
    assert found.rmse == pytest.approx(math.sqrt((gap**2).mean()), rel=1e-12)
    assert found.sqnr_db == pytest.approx(10 * np.log10((w**2).sum() / (gap**2).sum()), rel=1e-9)


def test_errors_are_over_the_finite_entries_of_the_weight() -> None:
    weight = drawn(20, 20).float()
    approx = weight + 0.01
    weight[2, 3], weight[4, 5], approx[4, 5] = math.nan, math.inf, 0
    finite = torch.isfinite(weight)
    gap = (weight.double() - approx.double())[finite].numpy()
    found = compare(weight, approx)
    assert found.frobenius == pytest.approx(np.linalg.norm(gap), rel=1e-12)
    assert found.mean_abs == pytest.approx(np.abs(gap).mean(), rel=1e-12)


def test_an_approximation_that_is_not_finite_does_not_look_good() -> None:
    weight, approx = torch.ones(20, 20), torch.ones(20, 20)
    approx[0, 0] = math.nan
    found = compare(weight, approx)
    assert math.isnan(found.max_abs)
    assert math.isnan(found.frobenius)
    assert found.sqnr_db == -math.inf


def test_no_error_is_infinitely_many_decibels() -> None:
    weight = drawn(5, 5)
    found = compare(weight, weight.clone())
    assert (found.frobenius, found.relative, found.sqnr_db) == (0, 0, math.inf)
    zero = torch.zeros(5, 5)
    assert compare(zero, zero).relative == 0
    assert compare(zero, zero + 1).relative == math.inf


@pytest.mark.parametrize("rows_at_once", [None, 1, 7, 1000])
def test_an_approximation_by_rows_has_the_errors_of_the_whole(rows_at_once: int | None) -> None:
    weight = drawn(4, 10, 48).half()
    seen = []

    def by_row(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[:-1].numel())
        scale = part.float().abs().amax(-1, keepdim=True) / 7
        return (part.float() / scale).round() * scale

    found = weight_errors(weight, by_row, rows_at_once)
    reference = compare(weight, by_row(weight))
    assert found.frobenius == pytest.approx(reference.frobenius, rel=1e-12)
    assert found.max_abs == reference.max_abs
    assert max(seen[:-1]) == min(40, rows_at_once or 40)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] does not approximate \[3, 2\]"):
        compare(torch.ones(3, 2), torch.ones(2, 3))


# histograms

tenths = st.integers(-50, 50).map(lambda n: n / 10)


@settings(max_examples=150, deadline=None)
@given(
    w=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=tenths | st.floats(-1e3, 1e3, width=32),
    ),
    bins=st.integers(1, 50),
)
def test_counts_equal_numpy(w: np.ndarray, bins: int) -> None:
    """Also where entries lie on the edges of bins, within a rounding."""
    found = histogram(torch.from_numpy(w), bins)
    if 0 < np.ptp(w) < 1e-300:
        return  # bins narrower than float64 can tell
    counts, edges = np.histogram(w, bins)
    assert (found.lo, found.hi) == (edges[0], edges[-1])
    assert found.counts == tuple(counts)


@pytest.mark.parametrize("bins", [10, 37, 100])
def test_a_grid_of_values_on_the_edges_is_counted_as_numpy_does(bins: int) -> None:
    w = np.linspace(-1.3, 2.9, 1 + 7 * bins).reshape(1, -1)
    assert histogram(torch.from_numpy(w), bins).counts == tuple(np.histogram(w, bins)[0])


def test_entries_on_an_edge_belong_to_the_bin_on_their_right() -> None:
    found = histogram(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 2.5]]), 4)
    assert found.counts == (1, 1, 2, 3)


def test_a_clipped_histogram_counts_what_it_leaves_out() -> None:
    weight = drawn(60, 60).float()
    weight[0, 0], weight[0, 1], weight[0, 2] = math.nan, math.inf, -math.inf
    w = weight.double().numpy()
    w = w[np.isfinite(w)]
    found = histogram(weight, 32, clip=2.0)
    assert found.lo == pytest.approx(w.mean() - 2 * w.std())
    assert found.hi == pytest.approx(w.mean() + 2 * w.std())
    assert found.below == (w < found.lo).sum() > 0
    assert found.above == (w > found.hi).sum() > 0
    assert sum(found.counts) + found.below + found.above == w.size
    assert found.sigma == pytest.approx(w.std(), rel=1e-12)


def test_a_clip_wider_than_the_weight_changes_nothing() -> None:
    weight = drawn(20, 20)
    assert histogram(weight, 16, clip=1e6) == histogram(weight, 16)


def test_one_value_has_bins_around_it() -> None:
    found = histogram(torch.full((3, 3), 2.0), 4)
    assert (found.lo, found.hi) == (1.5, 2.5)
    assert sum(found.counts) == 9


def test_memory_does_not_grow_with_the_weight(chunk: int) -> None:
    if chunk < 2**17:
        pytest.skip("one size is enough")
    weight = torch.zeros(24 * 2**20, dtype=torch.float16).normal_().reshape(-1, 4096)  # 48 MiB
    process = psutil.Process()
    before, most = process.memory_info().rss, 0

    def same(part: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, process.memory_info().rss - before)
        return part

    weight_statistics(weight)
    same(weight)
    histogram(weight, clip=4.0)
    weight_errors(weight, same, rows_at_once=256)
    assert most < 30 * 2**20
