"""What is wrong with a stored weight, where one simple mistake explains most of its error.

Each mistake that tools are known to make is undone in turn, and the weight compared with the
original again. The mistake that leaves least is the explanation, if it takes away half of the error
and leaves what a quantised weight may have. A weight that was quantised as it should be has no such
mistake: no candidate halves its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from engine.measure.compare.rounding import RUN, steps_of
from engine.measure.weights.chunks import row_spans

Mistake: TypeAlias = Literal[
    "off-by-one", "scale-factor", "swapped-codes", "permuted-rows", "transposed", "other-scales"
]
LEFT = 0.5
"""Share of the error that an explanation may leave."""
MOST = 0.5
"""And the relative error: two weights that have nothing in common are 1.4 apart."""
SIMPLER = 0.5
"""A mistake with a scale for every run is the explanation only if it leaves less than this of what
the others do: it has many more numbers to fit with."""
ROWS = 256
"""Rows that are looked at, evenly spread."""


@dataclass(frozen=True)
class Explanation:
    """A mistake that explains most of a weight's error."""

    mistake: Mistake
    relative: float
    """``‖W − Ŵ‖ / ‖W‖`` with the mistake undone."""
    factor: float = 1.0
    """Of `scale-factor`: what the stored weights are multiplied by; of `off-by-one`: steps."""


def explanation(weight: Tensor, stored: Tensor, heads: int = 0) -> Explanation | None:
    """The mistake that explains most of a weight's error; None if none does.

    Args:
        weight: ``[out, in]``, the original; or ``[experts, out, in]``, of which some rows are
            looked at.
        stored: the same shape.
        heads: of the rows, where they are those of queries or keys; 0 elsewhere.
    """
    if weight.dim() == 3:
        weight, stored = (_rows(each.flatten(0, 1)) for each in (weight, stored))
        found = _explained(weight, stored, 0)
        # Scales that every expert takes back in its own rows look like scales of another layer.
        return None if found is None or found.mistake == "other-scales" else found
    return _explained(weight, stored, heads)


def _explained(weight: Tensor, stored: Tensor, heads: int) -> Explanation | None:
    before = _relative(weight, _as_it_is(stored))
    if not before > 0 or not math.isfinite(before):
        return None
    best: Explanation | None = None
    for mistake, undo in _mistakes(weight, stored, heads):
        found = undo()
        if found is None:
            continue
        undone, factor, mine = found
        left = _relative(weight if mine is None else mine, undone)
        allowed = min(MOST, before * LEFT)
        if best is not None:
            allowed = min(allowed, best.relative * (SIMPLER if mistake == "other-scales" else 1.0))
        if left < allowed:
            best = Explanation(mistake, left, factor)
    return best


_Rows: TypeAlias = Callable[[slice], Tensor]
"""Some rows of a stored weight with a mistake undone."""
_Undone: TypeAlias = tuple[_Rows, float, Tensor | None] | None
"""A stored weight with a mistake undone, its factor, and the original's rows if not all."""


def _mistakes(
    weight: Tensor, stored: Tensor, heads: int
) -> Iterator[tuple[Mistake, Callable[[], _Undone]]]:
    yield "scale-factor", lambda: _scaled(weight, stored)
    for run in (RUN, 128, weight.shape[1]):  # in 8 bits few of the levels are near each other
        yield "off-by-one", partial(_off_by_one, weight, stored, run)
    yield "swapped-codes", lambda: _swapped(stored)
    if heads and len(weight) % (2 * heads) == 0:
        yield "permuted-rows", lambda: (_in_order(stored, _halves_apart(stored, heads)), 1.0, None)
        yield (
            "permuted-rows",
            lambda: (_in_order(stored, _halves_together(stored, heads)), 1.0, None),
        )
    if weight.shape[0] == weight.shape[1]:
        yield "transposed", lambda: (_as_it_is(stored.T), 1.0, None)
    yield "other-scales", lambda: _scaled_by_run(weight, stored)


def _as_it_is(stored: Tensor) -> _Rows:
    return lambda span: stored[span]


def _in_order(stored: Tensor, order: Tensor) -> _Rows:
    return lambda span: stored[order[span]]


def _relative(weight: Tensor, undone: _Rows) -> float:
    """Relative error, some rows at a time."""
    power = left = 0.0
    for span in row_spans(weight):
        rows = weight[span].double()
        power += float(rows.square().sum())
        left += float((rows - undone(span).double()).square().sum())
    return math.sqrt(left / power) if power else math.nan


def _scaled(weight: Tensor, stored: Tensor) -> _Undone:
    """One factor for all weights: a global scale that was multiplied where it divides, or lost."""
    power = product = 0.0
    for span in row_spans(weight):
        found = stored[span].double()
        power += float(found.square().sum())
        product += float((weight[span].double() * found).sum())
    if not power > 0 or not product > 0:
        return None
    factor = power / product
    return lambda span: stored[span].double() / factor, factor, None


def _off_by_one(weight: Tensor, stored: Tensor, run: int) -> _Undone:
    """All weights one step too high or too low: zero points of the other version."""
    rows, mine = _rows(stored), _rows(weight)
    run = min(run, rows.shape[1])
    whole = rows.shape[1] // run * run
    levels = rows[:, :whole].double().reshape(-1, run)
    original = mine[:, :whole].double().reshape(-1, run)
    step = steps_of(levels.sort(-1).values)[:, None]
    known = torch.isfinite(step[:, 0]) & torch.isfinite(levels).all(-1)
    levels, original, step = levels[known], original[known], step[known]
    if not len(levels):
        return None
    shift = float(((levels - original) / step).mean().round())
    if shift not in (-1.0, 1.0):
        return None
    return _as_it_is(levels - shift * step), shift, original


def _swapped(stored: Tensor) -> _Undone:
    """Neighbours exchanged: the high half of a byte was taken for the low one."""
    if stored.shape[1] % 2:
        return None

    def pairs(span: slice) -> Tensor:
        some = stored[span]
        return some.reshape(len(some), -1, 2).flip(-1).flatten(1)

    return pairs, 1.0, None


def _halves_apart(stored: Tensor, heads: int) -> Tensor:
    """Which rows those of each head are in transformers, from the order that llama.cpp has."""
    return torch.arange(len(stored)).reshape(heads, -1, 2).transpose(1, 2).reshape(-1)


def _halves_together(stored: Tensor, heads: int) -> Tensor:
    """The other way round: an order undone that was not there."""
    return torch.arange(len(stored)).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def _scaled_by_run(weight: Tensor, stored: Tensor) -> _Undone:
    """One factor for every run: the right codes with the scales of another layer."""
    rows, mine = _rows(stored).double(), _rows(weight).double()
    run = min(RUN, rows.shape[1])
    whole = rows.shape[1] // run * run
    levels, original = rows[:, :whole].reshape(-1, run), mine[:, :whole].reshape(-1, run)
    power = levels.square().sum(-1, keepdim=True)
    factor = (levels * original).sum(-1, keepdim=True) / power.where(power > 0, 1.0)
    return _as_it_is(levels * factor), 1.0, original


def _rows(tensor: Tensor) -> Tensor:
    """Evenly spread rows."""
    if len(tensor) <= ROWS:
        return tensor
    return tensor[torch.linspace(0, len(tensor) - 1, ROWS).long()]
