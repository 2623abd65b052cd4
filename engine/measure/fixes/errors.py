"""Errors of a layer in a format: of its weight, and of its output on calibration inputs.

The output error is relative, ``‖ŷ − y‖ / ‖y‖`` over tokens: ``√(tr ΔW H ΔWᵀ / tr W H Wᵀ)`` with
``H = X Xᵀ`` of all calibration tokens (equation 1 of GPTQ, Frantar et al. 2022, arXiv 2210.17323,
over the norm of the output). Where a format changes the inputs too, it is computed from the sample
of tokens that is kept. Experts are weighted by their own tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.measure.calibration.solve import LayerInputs
from engine.model.network import Held, StandIn, whole
from engine.quant.input_statistics import output_error
from engine.quant.rows import matrices, row_chunks


@dataclass(frozen=True)
class TriedErrors:
    """Relative errors of one layer in one format."""

    weight: float
    output: float
    """nan where no token is known."""
    tokens: int


@torch.no_grad()
def tried_errors(
    weight: Tensor, held: Held, inputs: LayerInputs | None, *, scaled: bool = False
) -> TriedErrors:
    """Errors of what a layer computes with.

    Args:
        weight: of the reference, ``[out, in]`` or ``[experts, out, in]``.
        held: instead of it.
        inputs: calibration statistics; None where they cannot be gathered.
        scaled: whether a weight whose inputs are changed is multiplied by a scale of its inputs:
            it is not comparable then, and its error nan.
    """
    held = whole(held)
    approx = held.weight if isinstance(held, StandIn) else held
    changed = isinstance(held, StandIn) and held.inputs is not None
    of_weight = math.nan
    if not (changed and scaled):
        of_weight = _relative(_squares(weight, approx), _squares(weight))
    if isinstance(held, StandIn) and changed:
        return _with_changed_inputs(weight, held, inputs, of_weight)
    if inputs is None:
        return TriedErrors(of_weight, math.nan, 0)
    error = signal = 0.0
    for expert, (w, a) in enumerate(zip(matrices(weight), matrices(approx), strict=True)):
        statistics = inputs.of(expert)
        gram = statistics.gram.to(w.device)
        error += output_error(a.to(torch.float32) - w.to(torch.float32), gram)
        signal += output_error(w, gram)
    return TriedErrors(of_weight, _relative(error, signal), inputs.statistics.tokens)


def _with_changed_inputs(
    weight: Tensor, held: StandIn, inputs: LayerInputs | None, of_weight: float
) -> TriedErrors:
    """Of a layer that rounds or scales its inputs: by the sample of tokens."""
    if inputs is None or weight.dim() != 2 or not len(inputs.sample):
        return TriedErrors(of_weight, math.nan, 0)
    assert held.inputs is not None
    x = inputs.sample.to(weight.device, torch.float32)
    y = x @ weight.to(torch.float32).T
    near = held.inputs(x) @ held.weight.to(torch.float32).T
    error, signal = (float(each.double().square().sum()) for each in (near - y, y))
    return TriedErrors(of_weight, _relative(error, signal), len(x))


def _relative(error: float, signal: float) -> float:
    return math.sqrt(max(0.0, error) / signal) if signal > 0 else math.nan


def _squares(weight: Tensor, approx: Tensor | None = None) -> float:
    """``‖W‖²``, or ``‖Ŵ − W‖²``, over the finite entries of ``W``."""
    total = 0.0
    for at, matrix in enumerate(matrices(weight)):
        other = None if approx is None else list(matrices(approx))[at]
        for rows in row_chunks(matrix):
            part = matrix[rows].double()
            gap = part if other is None else other[rows].double() - part
            total += float(gap.where(part.isfinite(), 0.0).square().sum())
    return total
