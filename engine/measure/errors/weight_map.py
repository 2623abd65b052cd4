"""Where in a layer's weights a format errs: a map of rows × groups."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_expert, read_layer
from engine.errors import FormatError
from engine.formats.grammar import Format, parse_format, without_calibration
from engine.formats.storage import why_not_held
from engine.quant.methods.channel_scales import only_weights
from engine.quant.quantize import dequantized
from engine.workspace import Opened

CELLS = 64
"""Rows, and columns, of cells at most."""
STRETCH = 128
"""Weights in a stretch of a row, in formats without groups."""
ROWS = 1 << 22
"""Weights whose errors are in memory at once."""


def draw_error_map(
    opened: Opened, layer: DiskLayer, format: str
) -> Generator[p.AnyEvent | None, None, None]:
    """The map of a layer in a format; of a kept format, or one it cannot hold, why there is none.

    Methods that need calibration inputs are left out: the map is of the weights alone.

    Yields:
        `ErrorMapReady`.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    asked = parse_format(format)
    used = only_weights(without_calibration(asked))
    why = "it is as stored" if asked.kept else why_not_held(used, layer.shape)
    if why is not None:
        yield _empty(layer, format, why)
        return
    scale_dtype: torch.dtype = getattr(torch, opened.scale_dtype)
    size = group_of(used, layer.shape[-1])
    rows = math.prod(layer.shape[:-1])
    errors = ErrorMap(rows, layer.shape[-1], size)
    for matrix in _matrices(opened, layer):
        yield None
        try:
            approx = dequantized(matrix, used, scale_dtype, name=layer.name)
        except FormatError as error:  # a scale overflows
            yield _empty(layer, format, str(error))
            return
        errors.add(matrix, approx)
    cells = errors.cells()
    yield p.ErrorMapReady(
        layer=layer.name,
        format=format,
        used=str(used),
        rows=rows,
        groups=errors.groups,
        group_size=size,
        height=cells.shape[0],
        width=cells.shape[1],
        cells=cells.flatten().tolist(),
    )


def _matrices(opened: Opened, layer: DiskLayer) -> Iterator[Tensor]:
    """The weight, or one expert after another: no more is in memory."""
    if len(layer.shape) == 2:
        yield read_layer(opened.checkpoint, layer)
        return
    for expert in range(layer.shape[0]):
        yield read_expert(opened.checkpoint, layer, expert)


def group_of(format: Format, row: int) -> int:
    """Weights in a column of the map: those of a group, or of a stretch of a row."""
    return min(row, format.group_size or STRETCH)


class ErrorMap:
    """Mean squared relative error of groups, in at most `CELLS` × `CELLS` cells.

    Args:
        rows: of the weight; of experts, of all of them together.
        width: of a row.
        size: weights in a group; the last of a row may be shorter.
    """

    def __init__(self, rows: int, width: int, size: int) -> None:
        self.groups = math.ceil(width / size)
        self._size, self._top = size, 0
        self._row = torch.arange(rows) * min(rows, CELLS) // rows
        self._column = torch.arange(self.groups) * min(self.groups, CELLS) // self.groups
        shape = min(rows, CELLS), min(self.groups, CELLS)
        self._sums = torch.zeros(shape, dtype=torch.float64)
        self._counts = torch.zeros(shape, dtype=torch.float64)

    @torch.no_grad()
    def add(self, weight: Tensor, approx: Tensor) -> None:
        """Add the next rows.

        Args:
            weight: ``[rows, width]``; what is not finite counts as 0.
            approx: its quantised value.
        """
        step = max(1, ROWS // weight.shape[1])
        for top in range(0, len(weight), step):
            some = slice(top, top + step)
            relative = _squared(weight[some], approx[some], self._size)
            rows = self._row[self._top : self._top + len(relative), None]
            at = rows.expand_as(relative), self._column.expand_as(relative)
            self._sums.index_put_(at, relative, accumulate=True)
            self._counts.index_put_(at, torch.ones_like(relative), accumulate=True)
            self._top += len(relative)

    def cells(self) -> Tensor:
        """The cells, float64."""
        return self._sums / self._counts


def _squared(weight: Tensor, approx: Tensor, size: int) -> Tensor:
    """``‖w − ŵ‖² / ‖w‖²`` of each group, ``[rows, groups]``; 0 of a group of zeros."""
    w = weight.detach().double().cpu()
    e = w - approx.detach().double().cpu()
    finite = torch.isfinite(w)
    w, e = w.where(finite, 0.0), e.where(finite, 0.0)
    pad = -w.shape[1] % size
    squares = [
        torch.nn.functional.pad(each.square(), (0, pad)).reshape(len(w), -1, size).sum(-1)
        for each in (e, w)
    ]
    return torch.where(squares[0] == 0, 0.0, squares[0] / squares[1])


def _empty(layer: DiskLayer, format: str, why: str) -> p.ErrorMapReady:
    return p.ErrorMapReady(
        layer=layer.name, format=format, rows=math.prod(layer.shape[:-1]), groups=0,
        group_size=0, height=0, width=0, cells=[], why=why,
    )  # fmt: skip
