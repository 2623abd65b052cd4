"""Statistics of each expert of a fused layer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_expert
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format, why_not_alone, why_not_built
from engine.formats.storage import why_not_held
from engine.measure.weights.statistics import compare, weight_statistics
from engine.quant.quantize import dequantized
from engine.service.jobs import Outcome, Steps
from engine.workspace import Opened


class Expert(NamedTuple):
    """One expert's statistics; NaN if it has no finite weight."""

    std: float
    max_abs: float
    outliers: float
    nonfinite: int
    relative: dict[str, float]


def survey_experts(opened: Opened, layer: DiskLayer) -> Steps:
    """Statistics of every expert of ``layer``, and errors in the settings' formats.

    One expert and its approximation are in memory at a time; each is a step. Formats that are not
    built or cannot hold the layer have no column; one that cannot hold an expert's values has NaN.

    Yields:
        None after each expert, finally `ExpertsReady`.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    parsed = [parse_format(text) for text in opened.settings.formats]
    formats = [
        f
        for f in parsed
        if not (why_not_built(f) or why_not_alone(f) or why_not_held(f, layer.shape))
    ]
    found: list[Expert] = []
    for index in range(layer.shape[0]):
        found.append(_expert(opened, layer, index, formats))
        yield None
    yield p.ExpertsReady(
        layer=layer.name,
        std=[expert.std for expert in found],
        max_abs=[expert.max_abs for expert in found],
        outliers=[expert.outliers for expert in found],
        nonfinite=[expert.nonfinite for expert in found],
        relative={str(f): [expert.relative[str(f)] for expert in found] for f in formats},
    )
    return Outcome(measured=len(found))


@torch.no_grad()
def _expert(opened: Opened, layer: DiskLayer, index: int, formats: list[Format]) -> Expert:
    weight = read_expert(opened.checkpoint, layer, index)
    statistics = weight_statistics(weight, opened.settings.sigma)
    scale_dtype: torch.dtype = getattr(torch, opened.scale_dtype)
    relative: dict[str, float] = {}
    for format in formats:
        try:
            approx = dequantized(weight, format, scale_dtype, name=f"{layer.name}, expert {index}")
        except FormatError:  # a scale overflows: the row of the whole layer says so
            relative[str(format)] = math.nan
        else:
            relative[str(format)] = compare(weight, approx).relative
    alive = statistics.entries > 0
    return Expert(
        statistics.std,
        statistics.max_abs if alive else math.nan,
        statistics.outliers.fraction if alive else math.nan,
        statistics.nan + statistics.inf,
        relative if alive else dict.fromkeys(relative, math.nan),
    )
