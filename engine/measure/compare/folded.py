"""Scales of input channels that AWQ or SmoothQuant folded into a stored weight.

Such a checkpoint holds ``round(W · s)``, column by column, and divides the layer's input by ``s``
elsewhere: in the norm before it, or in the rows of the layer before. Compared as it is, every
weight would seem wrong. Where the original's norm and the finished checkpoint's differ, their ratio
is the scale. Else it is fitted, and believed where columns differ by more than rounding could do:
rounding shrinks a column by no more than the share of it that it leaves unexplained.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.measure.weights.chunks import row_spans, rows_of

CERTAIN = 2.0
"""How many times its unexplained share a column's fit must differ from the others'."""
ENOUGH = 0.25
"""Share of the columns that must."""
ROUNDS = 4
"""Times that rows and columns are fitted in turn."""
NEAR = 0.05
"""Of a power of two, in its logarithm: 3.5%."""
LEAST = 0.01
"""The least difference that counts: 16-bit norms round by up to 0.4%."""


def scales(weight: Tensor, stored: Tensor) -> Tensor | None:
    """The scale of each input channel that was folded into a stored weight; None if none was.

    Args:
        weight: ``[…, out, in]``, the original.
        stored: the same shape.

    Returns:
        ``[in]``, float64: ``stored ≈ weight · scale``.
    """
    inputs = weight.shape[-1]
    power, products, squares = (torch.zeros(inputs, dtype=torch.float64) for _ in range(3))
    for _, rows, found in blocks(weight, stored):
        power += rows.square().sum(0)
        products += (rows * found).sum(0)
        squares += found.square().sum(0)
    usable = (power > 0) & (products > 0) & torch.isfinite(products)
    if not bool(usable.any()):
        return None
    scale = (products / power).where(usable, 1.0)
    explained = scale.square() * power
    left = (squares - explained).clamp(min=0) / explained.where(usable, 1.0)
    apart = (scale.log() - scale[usable].log().median()).abs()
    sure = usable & (apart > LEAST) & (apart > CERTAIN * left.sqrt())
    if int(sure.sum()) < ENOUGH * int(usable.sum()):
        return None
    return scale


def blocks(weight: Tensor, stored: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows at a time, so that no copy of a whole layer is made.

    Args:
        weight: ``[…, out, in]``, the original.
        stored: the same shape.

    Yields:
        Which rows of the last matrix they are, int64 ``[n]``, and the same rows of both,
        ``[n, in]`` float64.
    """
    rows, found = rows_of(weight), rows_of(stored)
    for span in row_spans(rows):
        places = torch.arange(len(rows))[span] % weight.shape[-2]
        yield places, rows[span].double(), found[span].double()


def fitted(weight: Tensor, stored: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What fits best, of rows and of columns: ``stored ≈ diag(rows) · weight · diag(columns)``.

    Args:
        weight: ``[…, out, in]``, the original.
        stored: the same shape.
        columns: ``[in]``, where they are known.

    Returns:
        ``[out]`` and ``[in]``, float64, all positive; 1 where nothing tells. Powers of two where
        all are near one: those are what an absorbing layer can be divided by exactly.
    """
    rows = torch.ones(weight.shape[-2], dtype=torch.float64)
    if columns is not None:
        given = columns.double()
        return _snapped(_rows(weight, stored, given)), given
    for _ in range(ROUNDS):
        found = _columns(weight, stored, rows)
        rows = _rows(weight, stored, found)
    return _snapped(rows), _snapped(found)


def columns_alone(weight: Tensor, stored: Tensor) -> Tensor:
    """Scales of columns where rows have none, ``[in]`` float64; see `fitted`."""
    return _snapped(_columns(weight, stored, torch.ones(weight.shape[-2], dtype=torch.float64)))


def _columns(weight: Tensor, stored: Tensor, rows: Tensor) -> Tensor:
    """What fits columns best, with scales of rows that are known."""
    products, squares = (torch.zeros(weight.shape[-1], dtype=torch.float64) for _ in range(2))
    for places, original, found in blocks(weight, stored):
        scaled = original.mul_(rows[places, None])
        products += found.mul_(scaled).sum(0)
        squares += scaled.square_().sum(0)
    return _ratio(products, squares)


def _rows(weight: Tensor, stored: Tensor, columns: Tensor) -> Tensor:
    """What fits rows best, with scales of columns that are known."""
    products, squares = (torch.zeros(weight.shape[-2], dtype=torch.float64) for _ in range(2))
    for places, original, found in blocks(weight, stored):
        scaled = original.mul_(columns)
        products.index_add_(0, places, found.mul_(scaled).sum(1))
        squares.index_add_(0, places, scaled.square_().sum(1))
    return _ratio(products, squares)


def _ratio(products: Tensor, squares: Tensor) -> Tensor:
    ratio = products / squares
    return ratio.where(torch.isfinite(ratio) & (ratio > 0), 1.0)


def _snapped(scale: Tensor) -> Tensor:
    exponents = scale.log2().round()
    near = bool(((scale.log2() - exponents).abs() < NEAR).all())
    return exponents.exp2() if near else scale


def of_norms(original: Tensor, finished: Tensor) -> Tensor | None:
    """The scales that a norm says were folded into the layers behind it; None if it is unchanged.

    Args:
        original: ``[in]``, the norm's weight.
        finished: the same of the finished checkpoint.
    """
    before, after = original.double(), finished.double()
    ratio = before / after
    if not bool(torch.isfinite(ratio).all()) or bool((ratio <= 0).any()):
        return None
    return ratio if bool(((ratio - 1).abs() > LEAST).any()) else None


def spread(scale: Tensor | None) -> float:
    """The largest scale over the smallest; 1 where nothing was folded."""
    return 1.0 if scale is None else float(scale.amax() / scale.amin())
