"""Writes a safetensors file one tensor at a time: the header first, from shapes alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.headers import DTYPES

_WORDS = {getattr(torch, name): word for word, (name, _) in DTYPES.items()}


class Slot(NamedTuple):
    """Dtype and shape of a tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


class ShardWriter:
    """Writes one safetensors file; tensors may come in any order, each once.

    They are laid out as safetensors does: widest dtype first, then by name, so that each is aligned
    to its own width.

    Args:
        file: to write; it must not exist yet.
        slots: every tensor, by name.
    """

    def __init__(self, file: Path, slots: Mapping[str, Slot]) -> None:
        self.file = file
        self._missing = dict(slots)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._starts: dict[str, int] = {}
        end = 0
        for name in sorted(slots, key=lambda name: (-slots[name].dtype.itemsize, name)):
            slot, start = slots[name], end
            end += slot.bytes
            self._starts[name] = start
            header[name] = {
                "dtype": _WORDS[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self._body = 8 + len(text)
        self._stream = file.open("xb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor at its place in the header.

        Raises:
            ValueError: it does not match its slot, or was written before.
        """
        slot = self._missing.pop(name, None)
        if slot is None or slot != (tensor.dtype, tuple(tensor.shape)):
            raise ValueError(f"{name} as {tensor.dtype} {list(tensor.shape)}: {slot} was expected")
        self._stream.seek(self._body + self._starts[name])
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._stream.write(raw.numpy().data)

    def finish(self) -> None:
        """Flush the file to disk.

        Raises:
            ValueError: a tensor was never written.
        """
        if self._missing:
            raise ValueError(f"{self.file} lacks {', '.join(self._missing)}")
        self._stream.flush()
        os.fsync(self._stream.fileno())
