"""Rows of a layer that is stored quantised, dequantised a few at a time.

The whole layer is never in memory: its pieces are, as they are stored, and the rows that are
asked for. Torch is imported for layouts that `engine.checkpoint.packed.four_bits` does not know.
"""

from __future__ import annotations

import threading
from math import prod
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.layers import DiskLayer
from engine.checkpoint.rows import read_ahead
from engine.checkpoint.weight import Loaded, QuantisedWeight

if TYPE_CHECKING:
    from engine.checkpoint.packed.four_bits import Array, FourBits

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
        self._packed: dict[int, FourBits] = {}
        self._lock = threading.Lock()
        self._fast = all(map(_is_packed, weights))
        self.read_as = "float32" if self._fast else self.dtype
        """The dtype that `read` gives; whatever it is, numbers are those of `dtype`."""

    def read(self, first: int, room: memoryview) -> None:
        """Fill ``room`` with the bytes of rows from ``first`` on; from any thread.

        Raises:
            CheckpointError: a piece cannot be read, or holds what it cannot mean.
        """
        import numpy as np

        size = 4 if self.read_as == "float32" else 2
        whole = np.frombuffer(room, np.uint8).reshape(-1, self.width * size)
        top, last = 0, first + len(whole)
        for at, weight in enumerate(self._weights):
            begin, end = max(first - top, 0), min(last - top, weight.height)
            if begin < end:
                self._fill(at, begin, whole[top + begin - first : top + end - first])
            top += weight.height

    def _fill(self, at: int, begin: int, room: Array) -> None:
        """Fill the bytes of rows with those of one of the weights from ``begin`` on."""
        if (packed := self.packed(at)) is not None:
            packed.fill(begin, room.view("float32"))
            return
        import torch

        found = self.loaded(at).rows(begin, begin + len(room)).contiguous()
        room[:] = found.view(torch.uint8).numpy()

    def loaded(self, at: int) -> Loaded:
        """The pieces of one of its weights, read the first time."""
        with self._lock:
            if at not in self._loaded:
                self._loaded[at] = self._weights[at].load()
            return self._loaded[at]

    def packed(self, at: int) -> FourBits | None:
        """The same as a compiled loop takes it; None if it does not know all of the weights."""
        if not self._fast:
            return None
        with self._lock:
            if at not in self._packed:
                found = packed_rows(self._weights[at])
                assert found is not None
                self._packed[at] = found
            return self._packed[at]

    def release(self) -> None:
        """Drop the pieces."""
        with self._lock:
            self._loaded.clear()
            self._packed.clear()

    def announce(self, first: int, rows: int) -> None:
        """Tell the system, once, that the pieces are read soon: they are read whole."""
        if first == 0:
            for weight in self._weights:
                for file, start, count in weight.places:
                    read_ahead(file, start, count)


def packed_rows(weight: QuantisedWeight) -> FourBits | None:
    """A weight's pieces as a compiled loop takes them; None if it does not know the layout.

    Raises:
        CheckpointError: a piece cannot be read, or holds what it cannot mean.
    """
    if weight.packed is None or not _is_packed(weight):
        return None
    from engine.checkpoint.packed.four_bits import FourBits

    found = weight.packed()
    assert isinstance(found, FourBits)
    return found


def _is_packed(weight: QuantisedWeight) -> bool:
    if weight.packed is None:
        return False
    from engine.checkpoint.packed import four_bits

    return four_bits.kernels() is not None


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
