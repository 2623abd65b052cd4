"""Which scales were folded into a layer of a finished checkpoint, told from all that it holds.

``stored ≈ diag(rows) · weight · diag(columns)``. What multiplies the columns is divided out where
the layer's input is made: in a norm, which then says it exactly, or in the rows of a layer
(``v_proj`` for ``o_proj``, ``up_proj`` for ``down_proj``). Rows are believed to be scaled only if
the columns of a layer after it have the reciprocals: the scales of another layer look the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.checkpoint import DiskLayer, read_layer
from engine.measure.compare.artefact import Artefact
from engine.measure.compare.folded import blocks, columns_alone, fitted, scales
from engine.measure.compare.rotations import Turn
from engine.measure.compare.turning import norm_scales, turned
from engine.model.fold_groups import FoldGroup

ALIKE = 0.3
"""Logarithms of the scales of columns and of rows that take them back differ by less than this of
themselves, in the root mean square: scales that have nothing to do with each other by 1.4."""
SCALED = 0.05
"""Root mean square of the logarithms of scales that are none of rounding."""
DEVIATIONS = 3.0
"""Standard deviations of a fitted scale that it may be off by."""


@dataclass(frozen=True, eq=False)
class Folded:
    """Scales that were folded into a stored weight."""

    columns: Tensor | None = None
    """``[in]``, float32; None for none."""
    rows: Tensor | None = None
    """``[out]``, float32; None for none."""
    doubt: float = 0.0
    """Relative error of scales that are fitted; 0 where a norm says them."""
    turn: Turn | None = None
    """Rotations, applied after the scales."""

    def into(self, weight: Tensor) -> Tensor:
        """An original weight ``[…, out, in]`` as it was rounded; float32 if it was scaled."""
        found = weight
        if self.columns is not None:
            found = found.float() * self.columns.to(found.device)
        if self.rows is not None:
            found = found.float() * self.rows.to(found.device).unsqueeze(-1)
        return found if self.turn is None else self.turn.into(found)

    def rows_out_of(self, some: Tensor, places: Tensor) -> Tensor:
        """Rows of a stored weight, rotated back, with its scales taken back.

        Args:
            some: ``[n, in]``.
            places: which rows they are, ``[n]``.
        """
        found = some
        if self.columns is not None:
            found = found / self.columns
        if self.rows is not None:
            found = found / self.rows[places, None]
        return found

    def out_of(self, stored: Tensor) -> Tensor:
        """A stored weight ``[…, out, in]`` with its rotations and scales taken back.

        float32 if there are any.
        """
        found = stored if self.turn is None else self.turn.out_of(stored)
        if self.columns is not None:
            found = found.float() / self.columns
        if self.rows is not None:
            found = found.float() / self.rows.unsqueeze(-1)
        return found


def folded_into(artefact: Artefact, layer: str, group: FoldGroup | None) -> Folded:
    """The scales that were folded into a layer; reads it and the original's.

    Args:
        artefact: the finished checkpoint.
        layer: one that both have.
        group: see `columns_of`.
    """
    original = artefact.original
    weight = read_layer(original.checkpoint, original.rows[layer])
    artefact.settle(layer, weight)
    stored = artefact.read(layer)
    turn = turned(artefact, layer, weight, stored, group)
    return unfolded(artefact, layer, weight, stored, group, turn)


def unfolded(
    artefact: Artefact,
    layer: str,
    weight: Tensor,
    stored: Tensor,
    group: FoldGroup | None,
    turn: Turn | None,
) -> Folded:
    """The scales of a layer whose rotations are known.

    Args:
        artefact, layer, weight, stored, group: see `columns_of`; the weight as it is stored.
        turn: its rotations; None for none.
    """
    back = stored if turn is None else turn.out_of(stored)
    found = columns_of(artefact, layer, weight, back, group)
    found = confirmed(found, artefact, layer, weight, back)
    if turn is None:
        return found
    return replace(found, turn=turn, doubt=found.doubt + DEVIATIONS * turn.doubt)


def columns_of(
    artefact: Artefact, layer: str, weight: Tensor, stored: Tensor, group: FoldGroup | None
) -> Folded:
    """The scales of a layer's input channels: by its norm, else fitted.

    Args:
        artefact: the finished checkpoint.
        layer: one that both have.
        weight: the original's, ``[…, out, in]``.
        stored: the finished checkpoint's.
        group: what is before the layer, where the model is loaded; its norm tells folded scales.
    """
    # A norm may have been tuned without its layers.
    norms = list(norm_scales(artefact, layer, group))
    best = min(norms, key=lambda scale: _left(weight, stored, scale), default=None)
    if best is not None and _nearer(weight, stored, best):
        return Folded(best.float())
    columns = scales(weight, stored)
    if columns is None:
        return Folded()
    found = Folded(columns.float())
    return replace(found, doubt=_doubt(found, weight, stored, weight.shape[-2]))


def confirmed(
    found: Folded, artefact: Artefact, layer: str, weight: Tensor, stored: Tensor
) -> Folded:
    """The same with scales that another layer of the block confirms, which has their reciprocals.

    Args:
        found: the scales of its columns, as far as they are known by themselves.
        artefact, layer, weight, stored: see `columns_of`.
    """
    rows, columns = fitted(weight, stored, found.columns)
    for after in _others(artefact, layer, further=True):
        if _takes(after, len(rows)) and _reciprocal(
            rows, _columns(artefact, after), artefact.key_heads
        ):
            scaled = found.columns is not None or _apart(columns)
            both = Folded(columns.float() if scaled else None, rows.float())
            doubt = _doubt(both, weight, stored, min(weight.shape[-2:]))
            return replace(both, doubt=doubt)
    if found.columns is not None:
        return found
    columns = _columns_of(weight, stored)
    for before in _others(artefact, layer, further=False):
        if _takes(artefact.original.rows[layer], before.shape[-2]) and _reciprocal(
            fitted(*_both(artefact, before.name))[0], columns, artefact.key_heads
        ):
            alone = Folded(columns.float())
            return replace(alone, doubt=_doubt(alone, weight, stored, weight.shape[-2]))
    return found


def _others(artefact: Artefact, layer: str, *, further: bool) -> Iterator[DiskLayer]:
    """Layers of the same block: those behind, else those before, the nearest first."""
    block = artefact.original.rows[layer].block
    names = [row.name for row in artefact.shared]
    at = names.index(layer)
    some = artefact.shared[at + 1 :] if further else artefact.shared[:at][::-1]
    return (row for row in some if block is not None and row.block == block)


def _columns(artefact: Artefact, row: DiskLayer) -> Tensor:
    return _columns_of(*_both(artefact, row.name))


def _columns_of(weight: Tensor, stored: Tensor) -> Tensor:
    """Scales of columns alone, whatever they are."""
    return columns_alone(weight, stored)


def _apart(columns: Tensor) -> bool:
    """Whether scales that were fitted are more than rounding."""
    logarithms = columns.log()
    return float((logarithms - logarithms.median()).square().mean().sqrt()) > SCALED


def _takes(row: DiskLayer, outputs: int) -> bool:
    return row.shape[-1] % outputs == 0 or outputs == 2 * row.shape[-1]


def _reciprocal(rows: Tensor, columns: Tensor, heads: int) -> bool:
    """Whether rows are divided by what columns are multiplied by.

    Args:
        rows: factors ``[out]``.
        columns: scales ``[in]``: as many; or a multiple, where several heads of queries share one
            of values; or half as many, where gate and up are one tensor, gate first.
        heads: of values.
    """
    divided, multiplied = rows.log(), columns.log()
    if len(divided) == 2 * len(multiplied):
        multiplied = torch.cat([torch.zeros_like(multiplied), multiplied])
    elif len(divided) != len(multiplied):
        if not heads or len(divided) % heads:
            return False
        each = divided.view(heads, 1, -1).expand(-1, len(multiplied) // len(divided), -1)
        divided = each.reshape(-1)
    left, enough = divided + multiplied, ALIKE * float(multiplied.norm())
    if float(multiplied.square().mean().sqrt()) < SCALED:
        return False
    # Where rows and columns of a layer are fitted, a factor may stand in either.
    varied = multiplied - multiplied.mean()
    return float(left.norm()) < enough or (
        float((left - left.mean()).norm()) < ALIKE * float(varied.norm())
    )


def _doubt(found: Folded, weight: Tensor, stored: Tensor, over: int) -> float:
    """Relative error of scales that are each fitted to so many weights."""
    power = left = 0.0
    for places, rows, some in blocks(weight, stored):
        power += float(rows.square().sum())
        left += float((found.rows_out_of(some, places) - rows).square().sum())
    return DEVIATIONS * math.sqrt(left / power) / math.sqrt(over) if power else 0.0


def _left(weight: Tensor, stored: Tensor, scale: Tensor) -> float:
    return math.sqrt(
        sum(
            float((some / scale.double() - rows).square().sum())
            for _, rows, some in blocks(weight, stored)
        )
    )


def _nearer(weight: Tensor, stored: Tensor, scale: Tensor) -> bool:
    """Whether a stored weight is nearer to the original with its scales taken back."""
    return _left(weight, stored, scale) < _left(weight, stored, torch.ones(()))


def _both(artefact: Artefact, layer: str) -> tuple[Tensor, Tensor]:
    """A layer's weight in the original and in the finished checkpoint, rotated back."""
    original = artefact.original
    weight = read_layer(original.checkpoint, original.rows[layer])
    artefact.settle(layer, weight)
    stored = artefact.read(layer)
    turn = turned(artefact, layer, weight, stored, None)
    return weight, stored if turn is None else turn.out_of(stored)
