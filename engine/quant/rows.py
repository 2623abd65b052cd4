"""Iterates over a weight a few rows at a time, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20
"""float32 bytes of the rows processed at a time."""


def matrices(weight: Tensor) -> Iterator[Tensor]:
    """The ``[out, in]`` matrices of a weight, as views: one per expert; a vector is one row."""
    if weight.dim() > 2:
        for part in weight:
            yield from matrices(part)
    else:
        yield weight if weight.dim() == 2 else weight.view(1, -1)


def row_chunks(matrix: Tensor, multiple: int = 1) -> Iterator[slice]:
    """Slices of the rows of ``[out, in]`` that hold `CHUNK_BYTES` as float32.

    Every slice except the last has a multiple of ``multiple`` rows, and at least that many.
    """
    out, row = matrix.shape
    step = max(1, CHUNK_BYTES // (4 * max(row, 1)) // multiple) * multiple
    for start in range(0, out, step):
        yield slice(start, min(start + step, out))


def flat_chunks(matrix: Tensor, multiple: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the flattened ``[out, in]`` that hold `CHUNK_BYTES` as float32, with their values.

    Every slice except the last has a multiple of ``multiple`` values, and at least that many. Only
    the rows of a slice are copied if the matrix is not contiguous.
    """
    row = matrix.shape[1]
    step = max(1, CHUNK_BYTES // 4 // multiple) * multiple
    for start in range(0, matrix.numel(), step):
        stop = min(start + step, matrix.numel())
        first, last = start // row, -(-stop // row)
        touched = matrix[first:last].reshape(-1)
        yield slice(start, stop), touched[start - first * row : stop - first * row]


def finite_and_broken(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows in float32 with 0 for non-finite values, and the positions of those, if any."""
    rows = rows.to(torch.float32)
    lo, hi = rows.aminmax()
    if lo.isfinite() and hi.isfinite():
        return rows, None
    broken = ~rows.isfinite()
    return rows.masked_fill(broken, 0), broken


def restored(approx: Tensor, broken: Tensor | None, rows: Tensor) -> Tensor:
    """``approx`` with the non-finite values of ``rows`` put back in place."""
    return approx if broken is None else torch.where(broken, rows.to(torch.float32), approx)


def table_lookup(table: Tensor, codes: Tensor) -> Tensor:
    """``table[codes]`` for a one-dimensional table, about five times as fast as indexing."""
    return table.to(codes.device).index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)
