"""Walking through a weight a few rows at a time, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK_BYTES = 16 << 20
"""float32 bytes of the rows that are worked on at a time."""


def matrices(weight: Tensor) -> Iterator[Tensor]:
    """The ``[out, in]`` matrices of a weight, as views: one per expert; a vector is one row."""
    if weight.dim() > 2:
        for part in weight:
            yield from matrices(part)
    else:
        yield weight if weight.dim() == 2 else weight.view(1, -1)


def row_chunks(matrix: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``[out, in]`` that hold `CHUNK_BYTES` as float32, one row at least."""
    out, row = matrix.shape
    step = max(1, CHUNK_BYTES // (4 * max(row, 1)))
    for start in range(0, out, step):
        yield slice(start, min(start + step, out))
