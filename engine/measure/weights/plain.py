"""Statistics and errors of a weight, step by step in torch: for all formats, on any machine."""

from __future__ import annotations

import torch
from torch import Tensor

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.measure.weights.errors import WeightErrors
from engine.measure.weights.reconstruction import compare, weight_errors
from engine.measure.weights.statistics import WeightStatistics, weight_statistics
from engine.quant.arithmetic import arithmetic_of
from engine.quant.quantize import dequantized

CHUNK = 1 << 19
"""Weights that are approximated at a time."""


@torch.no_grad()
def plain_statistics(weight: Tensor, layer: str, sigma: float) -> p.LayerWeights:
    """The statistics of a layer, as a fact."""
    return _fact(layer, weight_statistics(weight, sigma))


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
    worst = max(found.columns, key=lambda channel: channel.peak, default=None)
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
        worst_column=worst.index if worst is not None else -1,
        worst_column_sigma=worst.peak if worst is not None else 0.0,
    )
