"""A weight in chunks small enough to stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 2**17  # entries; 1 MiB in float64
_CHUNK_CUDA = 2**21
_ROWS = 2**19


def rows_of(weight: Tensor) -> Tensor:
    """``weight`` as a table of rows, without a copy if it is contiguous."""
    if weight.ndim == 0 or not weight.dtype.is_floating_point:
        raise ValueError(f"not a weight: {weight.dtype} of shape {list(weight.shape)}")
    if weight.numel() == 0:
        return weight.new_empty(0, 0)
    return weight.detach().reshape(-1, weight.shape[-1])


def spans(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges of the chunks; very long rows are cut too."""
    chunk = _CHUNK_CUDA if rows.is_cuda else _CHUNK
    height, width = rows.shape
    if not height or not width:
        return
    columns = min(width, chunk)
    step = max(1, chunk // columns)
    for top in range(0, height, step):
        for left in range(0, width, columns):
            yield slice(top, min(top + step, height)), slice(left, min(left + columns, width))


def chunks(rows: Tensor) -> Iterator[Tensor]:
    """The chunks of ``rows`` themselves, in float64."""
    for span in spans(rows):
        yield rows[span].to(torch.float64)


def row_spans(rows: Tensor) -> Iterator[slice]:
    """Ranges of whole rows, of a chunk of a few MiB each; one row at least."""
    step = max(1, _ROWS // max(1, rows.shape[-1]))
    for top in range(0, rows.shape[0], step):
        yield slice(top, min(top + step, rows.shape[0]))
