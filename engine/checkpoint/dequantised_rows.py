"""Rows of a layer that is stored quantised, dequantised a few at a time.

The whole layer is never in memory: its pieces are, as they are stored, and the rows that are
asked for.
"""

from __future__ import annotations

import threading
from math import prod

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.layers import DiskLayer
from engine.checkpoint.rows import read_ahead
from engine.checkpoint.weight import Loaded, QuantisedWeight

_DTYPES = ("float16", "bfloat16", "float32")


class DequantisedRows:
    """A layer as rows one below the other, as `engine.checkpoint.read_layer` would have them.

    Args:
        weights: what it is made of, from the top down; of one dtype and width.
    """

    def __init__(self, weights: tuple[QuantisedWeight, ...]) -> None:
        self._weights = weights
        self.dtype, self.width = weights[0].dtype, weights[0].shape[-1]
        self.height = sum(weight.height for weight in weights)
        self._loaded: dict[int, Loaded] = {}
        self._lock = threading.Lock()

    def read(self, first: int, room: memoryview) -> None:
        """Fill ``room`` with the bytes of rows from ``first`` on; from any thread.

        Raises:
            CheckpointError: a piece cannot be read, or holds what it cannot mean.
        """
        import torch

        row = len(room) // self.width // getattr(torch, self.dtype).itemsize
        whole = torch.frombuffer(room, dtype=torch.uint8) if len(room) else None
        filled, top, last = 0, 0, first + row
        for at, weight in enumerate(self._weights):
            begin, end = max(first - top, 0), min(last - top, weight.height)
            top += weight.height
            if begin >= end or whole is None:
                continue
            found = self.loaded(at).rows(begin, end).contiguous().reshape(-1).view(torch.uint8)
            whole[filled : filled + len(found)] = found
            filled += len(found)

    def loaded(self, at: int) -> Loaded:
        """The pieces of one of its weights, read the first time."""
        with self._lock:
            if at not in self._loaded:
                self._loaded[at] = self._weights[at].load()
            return self._loaded[at]

    def release(self) -> None:
        """Drop the pieces."""
        with self._lock:
            self._loaded.clear()

    def announce(self, first: int, rows: int) -> None:
        """Tell the system, once, that the pieces are read soon: they are read whole."""
        if first == 0:
            for weight in self._weights:
                for file, start, count in weight.places:
                    read_ahead(file, start, count)


def dequantised_rows(checkpoint: Checkpoint, layer: DiskLayer) -> DequantisedRows | None:
    """The rows of a layer all of whose parts are stored quantised; None for any other."""
    found = tuple(
        checkpoint.quantised[part] for part in layer.parts if part in checkpoint.quantised
    )
    if not found or len(found) != len(layer.parts) or layer.transposed:
        return None
    same = all(each.dtype == found[0].dtype for each in found)
    wide = all(each.shape[-1] == layer.shape[-1] for each in found)
    whole = sum(prod(each.shape) for each in found) == layer.parameters > 0
    if not (same and wide and whole) or found[0].dtype not in _DTYPES:
        return None
    return DequantisedRows(found)
