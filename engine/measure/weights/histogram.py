"""A layer's histogram with the grid of a format, for the side pane."""

from __future__ import annotations

import torch

from engine import protocol as p
from engine.checkpoint import DiskLayer, read_layer
from engine.formats.grammar import parse_format
from engine.measure.weights.grid import Grid, format_grid
from engine.measure.weights.statistics import histogram
from engine.service.jobs import Outcome, Steps
from engine.workspace import Opened


def draw_histogram(opened: Opened, layer: DiskLayer, bins: int, format: str) -> Steps:
    """Counts of the layer's weights, and the values ``format`` gives to those of a typical group.

    Args:
        format: of the grammar; empty or ``kept`` for no grid.

    Yields:
        `HistogramReady`.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    weight = read_layer(opened.checkpoint, layer)
    found = histogram(weight, bins)
    grid = Grid()
    if format not in ("", "kept"):
        grid = format_grid(weight, parse_format(format), getattr(torch, opened.scale_dtype))
    yield p.HistogramReady(
        layer=layer.name,
        low=found.lo,
        high=found.hi,
        counts=list(found.counts),
        mean=found.mean,
        std=found.sigma,
        format=format,
        grid=list(grid.levels),
        step=grid.step,
    )
    return Outcome()
