"""Statistics of one weight: outliers, faults, histogram.

A weight is ``[out, in]`` or ``[experts, out, in]``; experts are taken as rows one below the other,
so row ``r`` of expert ``e`` has the index ``e * out + r``. Everything is streamed in chunks small
enough to stay in the processor's cache, in float64, so memory does not grow with the weight.
NaN and infinite entries are counted, and left out of every other number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.measure.weights.chunks import chunks, rows_of, spans
from engine.measure.weights.errors import WeightErrors
from engine.measure.weights.reconstruction import compare, weight_errors

__all__ = [
    "Channel",
    "Histogram",
    "OutlierCounts",
    "WeightErrors",
    "WeightStatistics",
    "compare",
    "histogram",
    "weight_errors",
    "weight_statistics",
]

SIGMAS = (3.0, 6.0)
"""Outliers beyond these are always counted."""
CHANNEL_FACTOR = 3.0
"""A row or column is an outlier channel if its RMS exceeds this many times the median one."""
MOST_CHANNELS = 16
"""How many outlier channels are listed, the farthest first."""


@dataclass(frozen=True)
class OutlierCounts:
    """Entries farther than ``sigma`` standard deviations from the mean."""

    sigma: float
    count: int
    fraction: float


@dataclass(frozen=True)
class Channel:
    """A row or column whose RMS is above ``CHANNEL_FACTOR`` times the median.

    ``ratio`` is its RMS over that median; ``peak`` how many σ of the whole weight its farthest
    entry lies from the mean.
    """

    index: int
    ratio: float
    peak: float


@dataclass(frozen=True)
class WeightStatistics:
    """Statistics of one weight; see `weight_statistics`.

    Attributes:
        entries: finite entries, those that everything below is computed over.
        mean: their mean.
        std: their standard deviation, of the population (divided by n).
        max_abs: their largest magnitude.
        outliers: beyond the σ asked for.
        outliers_at: beyond each of ``SIGMAS`` and the σ asked for, in rising order.
        range_ratio: full range over the range without the outliers; 1 where there are none,
            infinite where the others are all equal.
        waste: ``1 − 1 / range_ratio``, the share of a uniform grid spent on outliers.
        kurtosis: excess (Fisher's): 0 for a normal distribution, as ``scipy.stats.kurtosis``
            gives it; NaN where all entries are equal.
        nan, inf: entries that are so.
        denormals: entries not zero, but below the smallest normal number of the stored dtype.
        zero_rows: rows that are zero throughout: outputs that are constant.
        dead_columns: columns that are zero throughout: inputs that are ignored.
        outlier_rows, outlier_columns: how many stand out.
        rows, columns: those, the farthest entry first, at most ``MOST_CHANNELS`` of each.
    """

    entries: int
    mean: float
    std: float
    max_abs: float
    outliers: OutlierCounts
    outliers_at: tuple[OutlierCounts, ...]
    range_ratio: float
    waste: float
    kurtosis: float
    nan: int
    inf: int
    denormals: int
    zero_rows: int
    dead_columns: int
    outlier_rows: int
    outlier_columns: int
    rows: tuple[Channel, ...]
    columns: tuple[Channel, ...]


@dataclass(frozen=True)
class Histogram:
    """Counts of finite entries in bins of equal width from ``lo`` to ``hi``.

    Each bin holds its left edge; the last holds its right edge too, as numpy has it. ``below``
    and ``above`` count the finite entries outside ``[lo, hi]``.
    """

    lo: float
    hi: float
    counts: tuple[int, ...]
    mean: float
    sigma: float
    below: int = 0
    above: int = 0


@dataclass
class _Survey:
    """A first pass: what the later ones must know."""

    entries: int
    nan: int
    inf: int
    denormals: int
    zero_rows: int
    dead_columns: int
    mean: float
    lo: float
    hi: float


@dataclass
class _Moments:
    """A second pass: powers of the deviation from the mean, and its extremes."""

    second: float
    fourth: float
    row_energy: Tensor
    row_peak: Tensor
    column_energy: Tensor
    column_peak: Tensor


def weight_statistics(weight: Tensor, sigma: float = 4.0) -> WeightStatistics:
    """Outliers, spread and health of ``weight``, ``[out, in]`` or ``[experts, out, in]``.

    An outlier lies farther than ``sigma`` standard deviations from the mean. A weight with no
    finite entry has NaN for mean and standard deviation.
    """
    rows = rows_of(weight)
    survey = _survey(rows)
    n = survey.entries
    if n == 0:
        moments = None
        std = kurtosis = math.nan
    else:
        moments = _moments(rows, survey)
        variance = moments.second / n
        std = math.sqrt(variance)
        kurtosis = moments.fourth / n / variance**2 - 3 if variance > 0 else math.nan
    sigmas = tuple(sorted({*SIGMAS, float(sigma)}))
    counts, lo, hi = _beyond(rows, survey, std, sigmas, float(sigma))
    at = tuple(
        OutlierCounts(k, c, c / n if n else 0.0) for k, c in zip(sigmas, counts, strict=True)
    )
    full, inner = survey.hi - survey.lo, hi - lo
    ratio = 1.0 if full == inner else (full / inner if inner > 0 else math.inf)
    found_rows = found_columns = 0
    row_channels: tuple[Channel, ...] = ()
    column_channels: tuple[Channel, ...] = ()
    if moments is not None and std > 0:
        width, height = rows.shape[1], rows.shape[0]
        found_rows, row_channels = _channels(moments.row_energy / width, moments.row_peak, std)
        found_columns, column_channels = _channels(
            moments.column_energy / height, moments.column_peak, std
        )
    return WeightStatistics(
        entries=n,
        mean=survey.mean,
        std=std,
        max_abs=max(abs(survey.lo), abs(survey.hi)),
        outliers=at[sigmas.index(float(sigma))],
        outliers_at=at,
        range_ratio=ratio,
        waste=1 - 1 / ratio,
        kurtosis=kurtosis,
        nan=survey.nan,
        inf=survey.inf,
        denormals=survey.denormals,
        zero_rows=survey.zero_rows,
        dead_columns=survey.dead_columns,
        outlier_rows=found_rows,
        outlier_columns=found_columns,
        rows=row_channels,
        columns=column_channels,
    )


def histogram(weight: Tensor, bins: int = 64, clip: float | None = None) -> Histogram:
    """Counts of the finite entries of ``weight`` in ``bins`` bins.

    With ``clip`` the bins span no more than the mean ± ``clip``·σ, so that a few outliers do not
    squeeze all the rest into one bin; what lies outside is counted by side.
    """
    if bins < 1:
        raise ValueError(f"a histogram needs at least one bin, not {bins}")
    rows = rows_of(weight)
    survey = _survey(rows)
    if survey.entries == 0:
        return Histogram(0.0, 0.0, (0,) * bins, math.nan, math.nan)
    std = math.sqrt(_second(rows, survey) / survey.entries)
    lo, hi = survey.lo, survey.hi
    if clip is not None and std > 0:
        lo, hi = max(lo, survey.mean - clip * std), min(hi, survey.mean + clip * std)
    if lo == hi:  # one value only: numpy's bins of width 1 around it
        lo, hi = lo - 0.5, hi + 0.5
    # numpy.linspace, to the last bit
    steps = torch.arange(bins + 1, dtype=torch.float64, device=rows.device)
    edges = steps * ((hi - lo) / bins) + lo
    edges[-1] = hi
    counts = torch.zeros(bins, dtype=torch.int64, device=rows.device)
    below = above = 0
    for chunk in chunks(rows):
        flat = chunk.flatten()
        if clip is not None or survey.nan or survey.inf:
            below += int(((flat < lo) & (flat > -math.inf)).sum())
            above += int(((flat > hi) & (flat < math.inf)).sum())
            flat = flat[(flat >= lo) & (flat <= hi)]
        place = ((flat - lo) / (hi - lo) * bins).long().clamp_(0, bins - 1)
        # The division may round across an edge: the edge itself decides.
        place -= (flat < edges[place]).long()
        place += ((flat >= edges[place + 1]) & (place < bins - 1)).long()
        counts += torch.bincount(place, minlength=bins)
    return Histogram(lo, hi, tuple(counts.tolist()), survey.mean, std, below, above)


def _survey(rows: Tensor) -> _Survey:
    tiny = torch.finfo(rows.dtype).tiny
    height, width = rows.shape
    row_lives = torch.zeros(height, dtype=torch.bool, device=rows.device)
    column_lives = torch.zeros(width, dtype=torch.bool, device=rows.device)
    total, lo, hi = 0.0, math.inf, -math.inf
    nan = inf = small = zeros = 0
    for span in spans(rows):
        chunk = rows[span].to(torch.float64)
        lives = chunk != 0
        row_lives[span[0]] |= lives.any(1)
        column_lives[span[1]] |= lives.any(0)
        zeros += chunk.numel() - int(lives.sum())
        small += int((chunk.abs() < tiny).sum())
        part = float(chunk.sum())
        if math.isfinite(part):
            low, high = torch.aminmax(chunk)
        else:
            finite = chunk.isfinite()
            here = int(chunk.isnan().sum())
            nan += here
            inf += chunk.numel() - int(finite.sum()) - here
            if not finite.any():
                continue
            part = float(chunk.where(finite, 0.0).sum())
            low = chunk.where(finite, math.inf).amin()
            high = chunk.where(finite, -math.inf).amax()
        total += part
        lo, hi = min(lo, float(low)), max(hi, float(high))
    entries = rows.numel() - nan - inf
    return _Survey(
        entries=entries,
        nan=nan,
        inf=inf,
        denormals=small - zeros,
        zero_rows=height - int(row_lives.sum()),
        dead_columns=width - int(column_lives.sum()),
        # The mean of equal entries is that entry, which a rounded sum may miss.
        mean=math.nan if not entries else lo if lo == hi else total / entries,
        lo=lo if entries else 0.0,
        hi=hi if entries else 0.0,
    )


def _deviations(rows: Tensor, survey: _Survey) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Pieces minus the mean; entries that are not finite deviate by 0."""
    for span in spans(rows):
        chunk = rows[span].to(torch.float64) - survey.mean
        if survey.nan or survey.inf:
            chunk = chunk.where(chunk.isfinite(), 0.0)
        yield span, chunk


def _second(rows: Tensor, survey: _Survey) -> float:
    return math.fsum(float(chunk.square().sum()) for _, chunk in _deviations(rows, survey))


def _moments(rows: Tensor, survey: _Survey) -> _Moments:
    height, width = rows.shape
    zeros = partial(torch.zeros, dtype=torch.float64, device=rows.device)
    row_energy, row_peak = zeros(height), zeros(height)
    column_energy, column_peak = zeros(width), zeros(width)
    second, fourth = zeros(()), zeros(())
    for (down, across), chunk in _deviations(rows, survey):
        square = chunk.square()
        second += square.sum()
        row_energy[down] += square.sum(1)
        column_energy[across] += square.sum(0)
        row_peak[down] = torch.maximum(row_peak[down], square.amax(1))
        column_peak[across] = torch.maximum(column_peak[across], square.amax(0))
        fourth += square.square_().sum()
    return _Moments(
        float(second),
        float(fourth),
        row_energy,
        row_peak.sqrt_(),
        column_energy,
        column_peak.sqrt_(),
    )


def _beyond(
    rows: Tensor, survey: _Survey, std: float, sigmas: tuple[float, ...], main: float
) -> tuple[list[int], float, float]:
    """How many entries lie beyond each σ, and the range of those within ``main`` of them."""
    lo, hi = survey.lo, survey.hi
    if not survey.entries or std == 0:
        return [0] * len(sigmas), lo, hi
    counts = torch.zeros(len(sigmas), dtype=torch.int64, device=rows.device)
    farthest = max(survey.hi - survey.mean, survey.mean - survey.lo)
    low = torch.full((), math.inf, dtype=torch.float64, device=rows.device)
    high = torch.full((), -math.inf, dtype=torch.float64, device=rows.device)
    for _, chunk in _deviations(rows, survey):
        size = chunk.abs()
        for i, k in enumerate(sigmas):
            if k * std >= farthest:
                break
            counts[i] += (size > k * std).sum()
        if main * std < farthest:
            inlier = size <= main * std
            low = torch.minimum(low, chunk.where(inlier, math.inf).amin())
            high = torch.maximum(high, chunk.where(inlier, -math.inf).amax())
    if main * std < farthest:
        lo, hi = (float(low), float(high)) if low <= high else (0.0, 0.0)
    return [int(c) for c in counts], lo, hi


def _channels(energy: Tensor, peak: Tensor, std: float) -> tuple[int, tuple[Channel, ...]]:
    """Channels whose RMS dwarfs the median one; those that do not vary at all do not vote."""
    rms = energy.sqrt()
    voters = rms[rms > 0]
    if len(voters) == 0:
        return 0, ()
    middle = voters.median()
    found = torch.nonzero(rms > CHANNEL_FACTOR * middle).flatten()
    order = peak[found].argsort(descending=True, stable=True)[:MOST_CHANNELS]
    named = found[order]
    ratios, peaks = (rms[named] / middle).tolist(), (peak[named] / std).tolist()
    channels = zip(named.tolist(), ratios, peaks, strict=True)
    return len(found), tuple(Channel(index, ratio, far) for index, ratio, far in channels)
