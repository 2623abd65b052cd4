"""How a stored weight follows from its original: rounded to the nearest level, solved, or neither.

The grid is read from the stored values themselves, so that this holds for every layout: in a run of
weights that share a scale, the values that occur are levels of its grid. A weight that lies closer
to another of them than to its own value was *displaced*. Rounding to nearest displaces none, but
for ties that a rounded scale decides otherwise. A solver (GPTQ, AutoRound) displaces many, by a
good part of a step, since a weight makes up for errors of others. A checkpoint that was made from
slightly different weights displaces those near a tie, by a small part of a step; one made from
other weights errs by more than the steps explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.measure.weights.chunks import row_spans, rows_of
from engine.protocol import Rounding

ROWS = 256
"""Rows that are looked at, evenly spread."""
RUN = 16
"""Weights of a run: the smallest group in use."""
SCALE_ROUNDING = 2.0**-9
"""Relative error of a scale that is stored in bfloat16; codes may come from the unrounded one."""
TIE = 0.02
"""Part of a step within which a weight counts as a tie."""
FEW = 0.002
"""Share of displaced weights up to which rounding was to nearest."""
CLOSE = 0.15
"""Part of a step: where nine of ten displaced weights are closer to their tie, they come from
weights slightly different rather than from a solver, which moves them by a third of one."""
FAR = 1.2
"""Root mean square error, in steps: rounding to nearest errs by 0.29, solvers by up to 0.6."""


@dataclass(frozen=True)
class Grid:
    """What a stored weight tells of its rounding.

    Attributes:
        rounding: the verdict.
        displaced: share of weights that are not at the nearest level of their grid.
        steps: root mean square error in steps of the grid; nan if it has none.
    """

    rounding: Rounding
    displaced: float
    steps: float


def grid_of(
    weight: Tensor, stored: Tensor, order: Tensor | None = None, *, doubt: float = 0.0
) -> Grid:
    """How ``stored`` follows from ``weight``.

    Args:
        weight: ``[…, out, in]``, the original, with the scales that were folded into ``stored``.
        stored: the same shape, what the finished checkpoint dequantises to.
        order: ``[in]``, columns in the order in which groups hold them; None if as they are.
        doubt: relative error of the scales that were folded, where they had to be fitted.
    """
    if _equal(weight, stored):
        return Grid("same", 0.0, 0.0)
    if order is not None:
        weight, stored = weight[..., order], stored[..., order]
    run = min(RUN, weight.shape[-1])
    original, levels = _runs(weight, run), _runs(stored, run)
    finite = (torch.isfinite(original) & torch.isfinite(levels)).all(-1)
    original, levels = original[finite], levels[finite]
    if not len(levels):
        return Grid("other", math.nan, math.nan)
    present = levels.sort(-1).values
    step = steps_of(present)
    known = torch.isfinite(step)
    if not bool(known.any()):  # every run has one value: nothing to be nearest to
        return Grid("other", math.nan, math.nan)
    original, levels, present, step = (x[known] for x in (original, levels, present, step))
    own = (original - levels).abs()
    moved = (own - _nearest(present, original)) / step[:, None]
    codes = (present[:, -1:] - present[:, :1]) / step[:, None]
    displaced = moved > TIE + codes * (SCALE_ROUNDING + doubt)
    share = float(displaced.double().mean())
    steps = float((own / step[:, None]).square().double().mean().sqrt())
    return Grid(_verdict(share, steps, moved[displaced]), share, steps)


def _equal(weight: Tensor, stored: Tensor) -> bool:
    """Whether all values are equal, whatever their dtypes."""
    rows, found = rows_of(weight), rows_of(stored)
    return all(torch.equal(rows[span].float(), found[span].float()) for span in row_spans(rows))


def _verdict(share: float, steps: float, moved: Tensor) -> Rounding:
    if share <= FEW:
        return "nearest"
    if steps > FAR:
        return "other"
    return "other" if float(moved.float().quantile(0.9)) < CLOSE else "solved"


def _runs(tensor: Tensor, run: int) -> Tensor:
    """Whole runs of evenly spread rows, ``[runs, run]``, float32."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    if len(rows) > ROWS:
        rows = rows[torch.linspace(0, len(rows) - 1, ROWS).long()]
    whole = rows.shape[1] // run * run
    return rows[:, :whole].float().reshape(-1, run)


def steps_of(present: Tensor) -> Tensor:
    """The step of each run's grid: its smallest gap; nan where there is one value.

    Args:
        present: ``[runs, run]``, the values of each run, sorted.
    """
    gaps = present.diff(dim=-1)
    width = present[:, -1:] - present[:, :1]
    # Values of one level differ in their last bits where they were computed in 16 bits.
    gaps = gaps.where(gaps > 1e-3 * width / 256, math.inf)
    least = gaps.amin(-1)
    return least.where(torch.isfinite(least), math.nan)


def _nearest(present: Tensor, values: Tensor) -> Tensor:
    """Distance of each value to the nearest of its run's levels, which are sorted."""
    at = torch.searchsorted(present, values.contiguous()).clamp_(1, present.shape[1] - 1)
    above, below = present.gather(1, at), present.gather(1, at - 1)
    return torch.minimum((values - above).abs(), (values - below).abs())
