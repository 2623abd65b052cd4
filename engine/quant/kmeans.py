"""``kmeans3`` and ``kmeans4``: a codebook of 8 or 16 values for every output channel.

SqueezeLLM (Kim et al. 2023, arXiv 2306.07629): the values of a row minimise ``Σ F · (w − value)²``
(equation 4), where ``F`` is the Fisher information of a weight if it is given, else 1; and with
``:sparse`` a share of the weights, those of greatest magnitude, is kept beside the codes (section
4.2). In one dimension a cluster is a run of the sorted row, so that errors come from prefix sums:
the row is cut into 128 runs, the best clusters of runs are found by dynamic programming, and
Lloyd's algorithm moves their ends to single weights. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.formats.families.kmeans import outliers_kept
from engine.formats.grammar import Format
from engine.quant.arithmetic import Arithmetic
from engine.quant.rows import finite_and_broken, row_chunks
from engine.quant.scales import in_stored_dtype
from engine.quant.stored import Encoded, joined, write_rows

RUNS = 128
"""Runs of sorted weights that a first guess does not divide."""
ITERATIONS = 100
"""Steps of Lloyd's algorithm at most; it ends before, once no weight changes its cluster."""

_ROWS = 64
"""Rows whose tables of errors are held at a time."""


@dataclass(frozen=True, eq=False)
class Clustered:
    """A weight ``[out, in]`` or ``[experts, out, in]`` as codes into a codebook per row."""

    codes: Tensor
    """uint8 in the shape of the weight; 0 where an outlier is kept."""
    centroids: Tensor
    """``[…, out, 2^bits]`` in the dtype it is stored in, ascending."""
    outliers: Tensor
    """``[…, kept]`` in the dtype they are stored in, row by row."""
    columns: Tensor
    """int32 ``[…, kept]``: the input of every outlier."""
    counts: Tensor
    """int32 ``[…, out]``: the outliers of every row; ``[…, 0]`` where a format keeps none."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``: the centroid of every code, and the outliers in their places."""
        found = self.centroids.to(torch.float32).gather(-1, self.codes.to(torch.int64))
        if self.counts.shape[-1]:
            rows = torch.arange(self.counts.numel(), device=found.device)
            rows = rows.repeat_interleave(self.counts.flatten().to(torch.int64))
            columns = self.columns.flatten().to(torch.int64)
            flat = found.view(-1, found.shape[-1])
            flat[rows, columns] = self.outliers.flatten().to(torch.float32)
        return found.to(dtype)


def quantize_kmeans(
    weight: Tensor,
    fmt: Format,
    scale_dtype: torch.dtype,
    name: str = "weight",
    importance: Tensor | None = None,
) -> Clustered:
    """Cluster every row of ``[out, in]`` or ``[experts, out, in]``.

    Values that are not finite count as 0.

    Args:
        weight: The weight; not modified.
        fmt: ``kmeans3`` or ``kmeans4``.
        scale_dtype: The dtype that centroids and outliers are stored in.
        name: The tensor, for error messages.
        importance: Of every weight of ``[out, in]``, not negative: its Fisher information.

    Raises:
        FormatError: A weight is too large for ``scale_dtype``.
    """
    return joined(
        lambda matrix: _encoded(matrix, fmt, scale_dtype, name, importance), weight.detach()
    )


def write_dequantized(
    weight: Tensor,
    fmt: Format,
    scale_dtype: torch.dtype,
    out: Tensor,
    name: str = "weight",
    importance: Tensor | None = None,
) -> None:
    """Write ``Ŵ`` of ``[out, in]`` into ``out``; raises as `quantize_kmeans` does."""
    write_rows(weight, _encoded(weight, fmt, scale_dtype, name, importance), out)


def fit_centroids(rows: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """Values of small weighted squared error, float64 ``[rows, clusters]``, ascending.

    Args:
        rows: ``[rows, in]``.
        weights: Of the squared errors, in the shape of ``rows``; 0 leaves a weight out.
        clusters: Values of a row.
    """
    parts = [slice(start, start + _ROWS) for start in range(0, len(rows), _ROWS)]
    return torch.cat([_fit(rows[part], weights[part], clusters) for part in parts])


def _fit(rows: Tensor, weights: Tensor, clusters: int) -> Tensor:
    ordered, order = rows.to(torch.float64).contiguous().sort(dim=-1)
    mass = weights.to(torch.float64).gather(-1, order)
    sums = [_prefix(mass * power) for power in (1, ordered, ordered * ordered)]
    centroids = _optimum_of_runs(ordered, sums, _runs(ordered, mass), clusters)
    first = torch.zeros_like(order[:, :1])
    last = torch.full_like(first, ordered.shape[1])
    before = None
    for _ in range(ITERATIONS):
        bounds = ((centroids[:, :-1] + centroids[:, 1:]) / 2).contiguous()
        ends = torch.cat([first, torch.searchsorted(ordered, bounds, right=True), last], dim=1)
        if before is not None and torch.equal(ends, before):
            break
        before = ends
        mass, moment = (prefix.gather(1, ends).diff(dim=1) for prefix in sums[:2])
        centroids = torch.where(mass > 0, moment / mass, centroids)
    return centroids


def _runs(ordered: Tensor, mass: Tensor) -> Tensor:
    """Where to cut each sorted row into `RUNS` runs, int64 ``[rows, runs + 1]``.

    Half of the cuts go with the mass of the weights, half with the density of centroids that is
    best for many of them, the cube root of that of the mass (Panter and Dite 1951): a gap between
    neighbours then counts with its power of 2/3.
    """
    count = ordered.shape[1]
    if count <= RUNS:
        return torch.arange(count + 1, device=ordered.device).expand(len(ordered), -1)
    gaps = ordered.diff(dim=1, prepend=ordered[:, :1]) ** (2 / 3) * mass ** (1 / 3)
    running = [amounts.cumsum(1) for amounts in (mass, gaps)]
    share = sum(each / each[:, -1:].clamp(min=1e-300) for each in running)
    assert isinstance(share, Tensor)
    steps = torch.arange(1, RUNS, device=ordered.device, dtype=torch.float64) / RUNS
    cuts = torch.searchsorted(share.contiguous(), (share[:, -1:] * steps).contiguous())
    ends = torch.zeros_like(cuts[:, :1]), torch.full_like(cuts[:, :1], count)
    return torch.cat([ends[0], cuts, ends[1]], dim=1)


def _optimum_of_runs(ordered: Tensor, sums: list[Tensor], cuts: Tensor, clusters: int) -> Tensor:
    """The centroids of least error where no cluster cuts a run, by dynamic programming.

    ``least[j]`` is the error of the runs before cut ``j`` in so many clusters; the last of them
    begins at the cut ``i`` where ``least[i] + within[j, i]`` is smallest (Wang and Song 2011).
    """
    mass, moment, square = (
        prefix.gather(1, cuts)[:, :, None] - prefix.gather(1, cuts)[:, None, :] for prefix in sums
    )
    within = (square - torch.where(mass > 0, moment * moment / mass, 0)).clamp_(min=0)
    later = torch.ones_like(within[0], dtype=torch.bool).triu_(1)
    within = within.to(torch.float32).masked_fill_(later, float("inf"))
    least = [within[:, :, 0]]
    for _ in range(clusters - 1):
        least.append((within + least[-1][:, None, :]).amin(-1))
    row = torch.arange(len(ordered), device=ordered.device)
    end = torch.full_like(row, cuts.shape[1] - 1)
    centroids = []
    for errors in [*reversed(least[:-1]), None]:
        begin = torch.zeros_like(end) if errors is None else (errors + within[row, end]).argmin(-1)
        here = cuts[row, begin].clamp(max=ordered.shape[1] - 1)
        mean = moment[row, end, begin] / mass[row, end, begin]
        centroids.append(torch.where(mass[row, end, begin] > 0, mean, ordered[row, here]))
        end = begin
    return torch.stack(centroids[::-1], dim=1)


def _prefix(numbers: Tensor) -> Tensor:
    """Sums of the first 0, 1, … of every row."""
    return torch.cat([torch.zeros_like(numbers[:, :1]), numbers.cumsum(1)], dim=1)


def _encoded(
    weight: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str, importance: Tensor | None
) -> Encoded[Clustered]:
    kept = outliers_kept(fmt, weight.numel())
    limit, ties = _limit(weight, kept)
    for rows in row_chunks(weight):
        finite, broken = finite_and_broken(weight[rows])
        magnitude = finite.abs()
        equal = magnitude == limit
        order = equal.flatten().cumsum(0).view_as(equal)
        outlying = (magnitude > limit) | (equal & (order <= ties))
        ties -= min(ties, int(order[-1, -1]))
        weights = torch.ones_like(finite) if importance is None else importance[rows].clone()
        found = fit_centroids(finite, weights.masked_fill_(outlying, 0), 1 << fmt.bits)
        centroids = in_stored_dtype(found.to(torch.float32), scale_dtype, fmt, name)
        values = centroids.to(torch.float32)
        bounds = ((values[:, :-1] + values[:, 1:]) / 2).contiguous()
        codes = torch.searchsorted(bounds, finite.contiguous(), out_int32=True).to(torch.uint8)
        codes.masked_fill_(outlying, 0)
        outliers = in_stored_dtype(finite[outlying], scale_dtype, fmt, name)
        columns = outlying.nonzero()[:, 1].to(torch.int32)
        counts = outlying.sum(1, dtype=torch.int32) if kept else columns
        yield rows, broken, Clustered(codes, centroids, outliers, columns, counts)


def _limit(weight: Tensor, kept: int) -> tuple[float, int]:
    """The magnitude of the last outlier kept, and how many of that magnitude are kept."""
    if not kept:
        return float("inf"), 0
    top = torch.zeros(0, device=weight.device)
    for rows in row_chunks(weight):
        found = torch.cat([top, finite_and_broken(weight[rows])[0].abs().flatten()])
        top = found.topk(min(kept, len(found))).values
    return float(top[-1]), int((top == top[-1]).sum())


ARITHMETIC = Arithmetic(quantize=quantize_kmeans, write=write_dequantized)
