"""Rows of a layer that is stored plain, read as bytes, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.layers import DiskLayer

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class StoredRows:
    """A layer as rows one below the other, in the bytes of its files.

    Experts are one below the other too, as `read_layer` would have them.
    """

    checkpoint: Checkpoint
    parts: tuple[TensorInfo, ...]
    dtype: str
    height: int
    width: int

    @property
    def read_as(self) -> str:
        """The dtype that `read` gives."""
        return self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * _BYTES[self.dtype]

    def read(self, first: int, room: memoryview) -> None:
        """Fill ``room`` with the bytes of rows from ``first`` on.

        Raises:
            CheckpointError: a file cannot be read, or has changed since it was opened.
        """
        filled = 0
        for part, start, count in self._spans(first, len(room) // self.row_bytes):
            self.checkpoint.fill(part, start, room[filled : filled + count])
            filled += count

    def announce(self, first: int, rows: int) -> None:
        """Tell the system that these rows are read soon."""
        for part, start, count in self._spans(first, rows):
            read_ahead(part.file, start, count)

    def _spans(self, first: int, rows: int) -> Iterator[tuple[TensorInfo, int, int]]:
        """The parts that hold some rows, with the offset in the file and the bytes of each."""
        skip, left = first * self.row_bytes, rows * self.row_bytes
        for part in self.parts:
            count = min(left, part.bytes - skip)
            if count > 0:
                yield part, part.start + skip, count
                left -= count
            skip = max(0, skip - part.bytes)


def read_ahead(file: Path, start: int, count: int) -> None:
    """Tell the system that some bytes are read soon, so that it reads ahead; it may not."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError), file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), start, count, os.POSIX_FADV_WILLNEED)


def stored_rows(checkpoint: Checkpoint, layer: DiskLayer) -> StoredRows | None:
    """The rows of a layer on disk; None if they are transposed, quantised, pickled, or float64."""
    parts = tuple(checkpoint.tensors[name] for name in layer.parts)
    plain = all(map(checkpoint.as_stored, layer.parts)) and layer.dtype in _BYTES
    if not plain or layer.transposed or layer.reader:
        return None
    width = layer.shape[-1] if layer.shape else 0
    if not layer.parameters or any(
        part.dtype != layer.dtype or part.shape[-1] != width for part in parts
    ):
        return None
    return StoredRows(checkpoint, parts, layer.dtype, layer.parameters // width, width)
