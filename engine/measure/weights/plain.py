"""Statistics and errors of a weight, step by step in torch: for all formats, on any machine."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.measure.weights.chunks import rows_of, spans
from engine.measure.weights.errors import WeightErrors
from engine.measure.weights.reconstruction import compare, weight_errors
from engine.measure.weights.sample import Array, sample_of, sampled_rows
from engine.measure.weights.statistics import WeightStatistics, weight_statistics
from engine.measure.weights.sums import LARGE_COLUMNS
from engine.quant.arithmetic import arithmetic_of
from engine.quant.quantize import dequantized

CHUNK = 1 << 19
"""Weights that are approximated at a time."""


@torch.no_grad()
def plain_statistics(weight: Tensor, layer: str, sigma: float) -> p.LayerWeights:
    """The statistics of a layer, as a fact."""
    rows = rows_of(weight)
    looked_at = rows[sampled_rows(len(rows))].to(torch.float32).cpu().numpy()
    fact = _fact(layer, weight_statistics(weight, sigma))
    return msgspec.structs.replace(fact, **sample_of(looked_at)._asdict())


@torch.no_grad()
def energies(weight: Tensor) -> tuple[Array, Array]:
    """Sums of squares of the finite entries of each row, and of each column, in float64."""
    rows = rows_of(weight)
    across = torch.zeros(len(rows), dtype=torch.float64)
    down = torch.zeros(rows.shape[1], dtype=torch.float64)
    for span in spans(rows):
        squares = rows[span].to(torch.float64).square().cpu()
        squares = squares.where(squares.isfinite(), 0.0)
        across[span[0]] += squares.sum(1)
        down[span[1]] += squares.sum(0)
    return across.numpy(), down.numpy()


@torch.no_grad()
def plain_error(weight: Tensor, format: Format, scale_dtype: str, layer: str) -> p.LayerError:
    """The error of a layer in a format that can hold its shape, as a fact."""
    try:
        found = errors_in(weight, format, getattr(torch, scale_dtype), layer)
    except FormatError as failure:
        return p.LayerError(layer, str(format), refused=str(failure))
    return p.LayerError(layer, str(format), found.fact)


def errors_in(
    weight: Tensor, format: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> WeightErrors:
    """Errors of a weight in a format.

    Raises:
        FormatError: a scale is too large for its dtype.
    """

    def approximate(part: Tensor) -> Tensor:
        return dequantized(part, format, scale_dtype, name=name)

    rotated = any(method.name == "hadamard" for method in format.methods)
    if not rotated and arithmetic_of(format).by_row(format):
        # No group crosses a row: Ŵ is made of a few rows that stay in the processor's cache.
        return weight_errors(weight, approximate, max(1, CHUNK // max(1, weight.shape[-1])))
    return compare(weight, approximate(weight))


def _fact(layer: str, found: WeightStatistics) -> p.LayerWeights:
    large = sorted(found.columns, key=lambda channel: -channel.peak)[:LARGE_COLUMNS]
    return p.LayerWeights(
        layer=layer,
        outliers=p.Outliers(
            found.outliers.sigma, found.outliers.count, found.outliers.fraction, found.max_abs
        ),
        range_ratio=found.range_ratio,
        waste=found.waste,
        kurtosis=found.kurtosis,
        nan=found.nan,
        inf=found.inf,
        zero_rows=found.zero_rows,
        dead_columns=found.dead_columns,
        denormals=found.denormals,
        mean=found.mean,
        std=found.std,
        worst_column=large[0].index if large else -1,
        worst_column_sigma=large[0].peak if large else 0.0,
        large_columns=tuple(channel.index for channel in large),
        large_columns_sigma=tuple(channel.peak for channel in large),
    )
