"""Weights beyond the ends of their grid, channel by channel, and what its scales were made from.

A grid of integers or of a table ends at its first and last code. An original weight more than half
a step beyond was clipped. Where no weight was, the scale is the largest weight of its group over a
number that tells the quantiser: in 4 bits 7 (AWQ without zero points, Model Optimizer), 7.5
(compressed-tensors, GPTQ, AutoRound, torchao), 8 where the largest weight takes the lowest code, or
the range over 15 with zero points. Scales that were searched for are of no such number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.checkpoint.packed.grid import Grid
from engine.checkpoint.weight import QuantisedWeight

MOST_OFF = 0.005
"""Relative difference of a scale from what its weights give: those in bfloat16 round by 0.4%."""
OF_GAP = 0.3
"""And of the distance to the next number that it could be."""
MOST = 0.8
"""Share of the groups that must be so."""


@dataclass(frozen=True)
class Clipping:
    """Where an original has weights beyond the grid that a finished checkpoint has."""

    share: float = math.nan
    """Of all weights; nan where the ends of the grid are not known."""
    input: int = -1
    """The input channel with the largest share."""
    input_share: float = math.nan
    output: int = -1
    """The output channel with the largest share."""
    output_share: float = math.nan
    divisor: float = math.nan
    """What the largest weight, or the range, of a group is divided by for its scale; nan if that is
    no number that quantisers use."""


def clipping(stored: Iterable[tuple[QuantisedWeight, int]], target: Tensor) -> Clipping:
    """Compare an original with the ends of the grid it was rounded to.

    Args:
        stored: the weights of the layer, each with its first row.
        target: ``[…, out, in]``, the original as it was rounded, with scales that were folded in.
    """
    weights = list(stored)
    height = target.shape[-2]
    rows = target.reshape(-1, target.shape[-1])
    inputs = torch.zeros(rows.shape[1], dtype=torch.int64)
    outputs = torch.zeros(height, dtype=torch.int64)
    ratios: list[Tensor] = []
    seen, numbers = 0, _Numbers()
    for weight, begin in weights:
        loaded = weight.load()
        if not isinstance(loaded, Grid) or not loaded.levels:
            return Clipping()
        numbers.add(loaded)
        for first, end in weight.spans():
            last = min(end, len(rows) - begin)  # of a padded vocabulary the original has fewer
            if last <= first:
                break
            some = rows[begin + first : begin + last].float()
            beyond = _beyond(loaded, some, first, last)
            inputs += beyond.sum(0)
            places = torch.arange(begin + first, begin + last) % height
            outputs.index_add_(0, places, beyond.sum(1))
            seen += beyond.numel()
            ratios += _ratios(loaded, some, first, last, whole=numbers.symmetric)
    if not seen:
        return Clipping()
    column, row = int(inputs.argmax()), int(outputs.argmax())
    return Clipping(
        int(inputs.sum()) / seen,
        column,
        int(inputs[column]) * len(inputs) / seen,
        row,
        int(outputs[row]) * len(outputs) / seen,
        _divisor(torch.cat(ratios), numbers) if ratios else math.nan,
    )


class _Numbers:
    """What all parts of a layer have: levels, and one zero point in the middle or any."""

    def __init__(self) -> None:
        self.levels, self.symmetric, self.plain = 0, True, True

    def add(self, grid: Grid) -> None:
        self.levels = max(self.levels, grid.levels)
        self.plain &= grid.table is None and grid.offsets is None
        if grid.zeros is not None:
            self.symmetric &= bool((grid.zeros == grid.levels // 2).all())

    def candidates(self) -> tuple[float, ...]:
        half = self.levels / 2
        return (half - 1, half - 0.5, half) if self.symmetric else (self.levels - 1.0,)


def _beyond(grid: Grid, target: Tensor, first: int, last: int) -> Tensor:
    """Which weights are more than half a step beyond the ends of the grid."""
    scales = grid.at(grid.scales, first, last).float()
    table = torch.arange(grid.levels).float() if grid.table is None else grid.table.sort().values
    zeros = 0.0 if grid.zeros is None else grid.at(grid.zeros, first, last).float()
    middle = float(grid.middle) if grid.zeros is None else 0.0
    offset = 0.0 if grid.offsets is None else grid.at(grid.offsets, first, last).float()
    half = [(table[1] - table[0]) / 2, (table[-1] - table[-2]) / 2]
    ends = torch.stack(
        [
            (table[0] - half[0] - middle - zeros) * scales + offset,
            (table[-1] + half[1] - middle - zeros) * scales + offset,
        ]
    )
    # A weight at a tie is not beyond it, nor is one whose scale was rounded.
    low, high = ends.amin(0), ends.amax(0)
    slack = (high - low) * 2.0**-8
    if grid.index is not None:
        low, high = (low - slack)[:, grid.index], (high + slack)[:, grid.index]
        return (target < low) | (target > high)
    parts = target.view(len(target), scales.shape[1], -1)
    found = (parts < (low - slack)[..., None]) | (parts > (high + slack)[..., None])
    return found.view(target.shape)


def _ratios(grid: Grid, target: Tensor, first: int, last: int, *, whole: bool) -> Iterator[Tensor]:
    """The largest weight of each group, or its range, over its scale."""
    if grid.table is not None or grid.offsets is not None or grid.rows_each != 1:
        return
    scales = grid.scales[first:last].float().abs()
    if grid.index is not None:
        if target.shape[1] % scales.shape[1]:
            return
        target = target[:, grid.index.argsort(stable=True)]
    parts = target.reshape(len(target), scales.shape[1], -1)
    if whole:
        size = parts.abs().amax(-1)
    else:
        size = parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)
    used = (scales > 0) & (size > 0)
    yield size[used] / scales[used]


def _divisor(ratios: Tensor, numbers: _Numbers) -> float:
    """The number that most groups have; nan if there is none."""
    if not numbers.plain or not len(ratios):
        return math.nan
    middle = float(ratios.median())
    found = min(numbers.candidates(), key=lambda each: abs(each - middle))
    allowed = min(MOST_OFF, OF_GAP * 0.5 / found)
    near = float(((ratios / found - 1).abs() < allowed).double().mean())
    return found if near >= MOST else math.nan
