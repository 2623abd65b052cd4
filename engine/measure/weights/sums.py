"""What a pass over rows of a weight sums up, and the statistics and errors that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine import protocol as p
from engine.measure.weights.errors import WeightErrors, errors_of
from engine.measure.weights.sample import Sample, sample_of

Array: TypeAlias = NDArray[Any]

CHANNEL_FACTOR = 3.0
"""A row or column is an outlier channel if its RMS exceeds this many times the median one."""
LARGE_COLUMNS = 8
"""Columns that are listed, at most."""


class Beyond(NamedTuple):
    """Entries beyond a number of standard deviations, and the range of the deviations within."""

    entries: int = 0
    lo: float = math.inf
    hi: float = -math.inf

    def join(self, other: Beyond) -> Beyond:
        """Both together."""
        entries = self.entries + other.entries
        return Beyond(entries, min(self.lo, other.lo), max(self.hi, other.hi))


@dataclass
class Sums:
    """Sums over rows, in float64; entries that are not finite are counted and left out.

    Powers are those of the deviation from ``shift``, a float32 near the mean.
    """

    width: int
    formats: int
    shift: float
    height: int = 0
    nan: int = 0
    inf: int = 0
    alive: int = 0
    """Rows that are not zero throughout."""
    read_s: float = 0.0
    """Seconds spent reading."""
    powers: Array = field(init=False)
    """Sums of the powers 1 to 4, and the number of denormals."""
    columns: Array = field(init=False)
    """Sums of the powers 1 and 2 of each column."""
    extremes: Array = field(init=False)
    """The range of each column; infinite the wrong way round where nothing is finite."""
    missing: Array = field(init=False)
    """Entries of each column that are not finite."""
    ranges: Array = field(init=False)
    """The range of each row, likewise."""
    energies: Array = field(init=False)
    """Sum of squares of each row."""
    sample: list[Array] = field(init=False)
    """Rows that are looked at more closely, float32."""
    errors: Array = field(init=False)
    """For each format: squares and magnitudes of ``Ŵ − W``, the greatest magnitude, and in how many
    rows a scale overflows."""

    def __post_init__(self) -> None:
        self.powers = np.zeros(5)
        self.columns = np.zeros((2, self.width))
        self.extremes = np.full((2, self.width), [[np.inf], [-np.inf]], np.float32)
        self.missing = np.zeros(self.width, np.int64)
        self.ranges = np.full((2, self.height), [[np.inf], [-np.inf]], np.float32)
        self.energies, self.sample = np.zeros(self.height), []
        self.errors = np.zeros((self.formats, 4))

    def join(self, other: Sums) -> None:
        """Add the rows that follow these."""
        self.height += other.height
        self.nan += other.nan
        self.inf += other.inf
        self.alive += other.alive
        self.read_s += other.read_s
        self.powers += other.powers
        self.columns += other.columns
        self.missing += other.missing
        self._widen(other.extremes)
        self.ranges = np.concatenate([self.ranges, other.ranges], 1)
        self.energies = np.concatenate([self.energies, other.energies])
        self.sample += other.sample
        farthest = np.maximum(self.errors[:, 2], other.errors[:, 2])
        self.errors += other.errors
        self.errors[:, 2] = farthest

    def add_broken_row(self, row: int, values: Array) -> None:
        """Add a row with entries that are not finite; not its denormals, and not its errors.

        Args:
            row: its index.
            values: float32 ``[width]``.
        """
        finite = np.isfinite(values)
        away = np.where(finite, values.astype(np.float64) - self.shift, 0.0)
        square = away * away
        self.powers[:4] += away.sum(), square.sum(), (away * square).sum(), (square * square).sum()
        self.columns += np.stack([away, square])
        ends = np.stack([np.where(finite, values, np.inf), np.where(finite, values, -np.inf)])
        self._widen(ends)
        self.ranges[:, row] = ends[0].min(), ends[1].max()
        self.energies[row] = np.square(np.where(finite, values, 0), dtype=np.float64).sum()
        self.missing += ~finite
        nan = int(np.isnan(values).sum())
        self.nan += nan
        self.inf += int((~finite).sum()) - nan

    def _widen(self, extremes: Array) -> None:
        lo, hi = self.extremes
        np.minimum(lo, extremes[0], out=lo)
        np.maximum(hi, extremes[1], out=hi)

    @property
    def entries(self) -> int:
        """Finite entries."""
        return self.height * self.width - self.nan - self.inf

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest entry; 0 if nothing is finite."""
        if not self.entries:
            return 0.0, 0.0
        return float(self.ranges[0].min()), float(self.ranges[1].max())

    @property
    def mean(self) -> float:
        """Of the finite entries; NaN if there are none."""
        lo, hi = self.ends
        if not self.entries:
            return math.nan
        # The mean of equal entries is that entry, which a rounded sum may miss.
        return lo if lo == hi else self.shift + float(self.powers[0]) / self.entries

    @property
    def std(self) -> float:
        """Of the population; NaN if nothing is finite."""
        return math.sqrt(self._central[0] / self.entries) if self.entries else math.nan

    @property
    def _central(self) -> tuple[float, float]:
        """Sums of the second and fourth power of the deviation from the mean."""
        lo, hi = self.ends
        if lo == hi:
            return 0.0, 0.0
        n = self.entries
        one, two, three, four = map(float, self.powers[:4])
        d = one / n
        second = max(0.0, two - n * d * d)
        return second, max(0.0, four - 4 * d * three + 6 * d * d * two - 3 * n * d**4)

    @property
    def signal(self) -> float:
        """``‖W‖²``."""
        lo, hi = self.ends
        if lo == hi:
            return self.entries * lo * lo
        one, two = map(float, self.powers[:2])
        return max(0.0, two + 2 * self.shift * one + self.entries * self.shift**2)

    def reach(self, limit: float) -> Array:
        """Which rows have an entry farther than ``limit`` from the mean."""
        lo, hi = self.ranges.astype(np.float64)
        found: Array = np.maximum(hi - self.mean, self.mean - lo) > limit
        return found

    def inside(self, beyond: Array) -> Beyond:
        """The range of the deviations in the other rows."""
        lo, hi = self.ranges[:, ~beyond].astype(np.float64)
        if not len(lo):
            return Beyond()
        return Beyond(0, float(lo.min()) - self.mean, float(hi.max()) - self.mean)

    def overflows(self, format: int) -> bool:
        """Whether a scale is too large for its dtype in one format."""
        return bool(self.errors[format, 3])

    def errors_in(self, format: int) -> WeightErrors:
        """The errors in one format."""
        noise, distance, farthest, _ = map(float, self.errors[format])
        return errors_of(self.signal, noise, distance, farthest, self.entries)

    def weights(self, layer: str, sigma: float, beyond: Beyond | None) -> p.LayerWeights:
        """The statistics as a fact.

        Args:
            layer: its name.
            sigma: standard deviations beyond which entries are outliers.
            beyond: those entries; None if there are none.
        """
        lo, hi = self.ends
        n, mean, std = self.entries, self.mean, self.std
        second, fourth = self._central
        full = inner = hi - lo
        if beyond is not None:
            inner = beyond.hi - beyond.lo if beyond.lo <= beyond.hi else 0.0
        ratio = 1.0 if full == inner else (full / inner if inner > 0 else math.inf)
        large = self._large_columns(mean, std)
        count = beyond.entries if beyond is not None else 0
        largest = max(abs(lo), abs(hi))
        return p.LayerWeights(
            layer=layer,
            outliers=p.Outliers(sigma, count, count / n if n else 0.0, largest),
            range_ratio=ratio,
            waste=1 - 1 / ratio,
            kurtosis=fourth / n / (second / n) ** 2 - 3 if second > 0 else math.nan,
            nan=self.nan,
            inf=self.inf,
            zero_rows=self.height - self.alive,
            dead_columns=int((~self.extremes.any(0) & (self.missing == 0)).sum()),
            denormals=int(self.powers[4]),
            mean=mean,
            std=std,
            worst_column=large[0][0] if large else -1,
            worst_column_sigma=large[0][1] if large else 0.0,
            large_columns=tuple(column for column, _ in large),
            large_columns_sigma=tuple(sigma for _, sigma in large),
            **self._sample()._asdict(),
        )

    def _sample(self) -> Sample:
        """What the sampled rows tell."""
        return sample_of(np.stack(self.sample)) if self.sample else Sample()

    @property
    def column_energies(self) -> Array:
        """Sum of squares of each column."""
        one, two = self.columns
        count = self.height - self.missing
        found: Array = np.maximum(two + 2 * self.shift * one + count * self.shift**2, 0.0)
        return found

    def _large_columns(self, mean: float, std: float) -> list[tuple[int, float]]:
        """Columns whose RMS dwarfs the median one, that with the farthest entry first.

        Columns that do not vary at all do not vote. With each, how many standard deviations away
        its farthest entry is; as many as are listed.
        """
        if not std > 0:
            return []
        d, count = mean - self.shift, self.height - self.missing
        one, two = self.columns
        lo, hi = self.extremes.astype(np.float64)
        energy = np.maximum(two - 2 * d * one + count * d * d, 0.0)
        energy = np.where(lo == hi, count * (lo - mean) ** 2, energy)
        peak = np.where(count > 0, np.maximum(hi - mean, mean - lo), 0.0)
        rms = np.sqrt(np.where(count > 0, energy, 0.0) / self.height)
        voters = rms[rms > 0]
        if not len(voters):
            return []
        middle = np.partition(voters, (len(voters) - 1) // 2)[(len(voters) - 1) // 2]
        found = np.flatnonzero(rms > CHANNEL_FACTOR * middle)
        if not len(found):
            return []
        order = found[np.argsort(-peak[found], kind="stable")][:LARGE_COLUMNS]
        return [(int(column), float(peak[column]) / std) for column in order]
