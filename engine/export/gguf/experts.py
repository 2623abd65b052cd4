"""Experts as llama.cpp has them: gates, ups and downs of a block, in one tensor each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, DiskLayer
from engine.checkpoint.gguf.architectures import Architecture
from engine.errors import CheckpointError
from engine.export.gguf.pieces import DTYPES, KEPT, STORED, Piece, Stored
from engine.formats.grammar import Format
from engine.quant.quantize import dequantized


def stacked(
    checkpoint: Checkpoint,
    architecture: Architecture,
    rows: Iterable[DiskLayer],
    formats: Mapping[str, Format],
    stored: Stored,
) -> dict[str, Piece]:
    """The tensors of all experts, by name.

    Args:
        checkpoint: whose experts are stored one by one.
        architecture: of llama.cpp.
        rows: all layers.
        formats: by layer.
        stored: returns the blocks of a layer.

    Raises:
        CheckpointError: experts are stored in another way.
    """
    found: dict[str, Piece] = {}
    for row in rows:
        if row.role != "experts" or not architecture.experts:
            continue
        names: dict[str, list[str]] = defaultdict(list)
        for part in row.parts:
            expert = architecture.expert_of(part)
            if expert is None or expert[1] != len(names[expert[0]]):
                raise CheckpointError(
                    f"{checkpoint.folder} stores {part!r}, not experts one by one, as llama.cpp's "
                    f"{architecture.name} is made from: save it again with transformers"
                )
            names[expert[0]].append(part)
        fmt = formats.get(row.name)
        blocks = _Once(partial(stored, row, fmt)) if fmt is not None and not fmt.kept else None
        top = 0
        for name, parts in names.items():
            out, inner = checkpoint.tensors[parts[0]].shape
            shape = (len(parts), out, inner)
            if fmt is not None and blocks is not None:
                make = partial(blocks.rows, top, top + out, last=top + out == row.shape[1])
                found[name] = Piece(name, tuple(parts), fmt.name, shape, make)
            else:
                own = getattr(torch, checkpoint.tensors[parts[0]].dtype)
                kind = STORED.get(own, "f32") if fmt is None else KEPT[fmt.name]
                make = partial(_kept, checkpoint, tuple(parts), fmt, DTYPES[kind])
                found[name] = Piece(name, tuple(parts), kind, shape, make)
            top += out
    return found


class _Once:
    """Blocks ``[experts, out, bytes]``, made for its first piece, dropped after its last."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def rows(self, top: int, end: int, *, last: bool) -> Tensor:
        """Some rows of every expert."""
        if self._made is None:
            self._made = self._make()
        found = self._made[:, top:end]
        if last:
            self._made = None
        return found


def _kept(
    checkpoint: Checkpoint, parts: tuple[str, ...], fmt: Format | None, dtype: torch.dtype
) -> Tensor:
    """Experts as they are, or in another dtype, with the check that every value fits."""

    def read(part: str) -> Tensor:
        whole = checkpoint.read(part)
        return (whole if fmt is None else dequantized(whole, fmt, torch.float16, part)).to(dtype)

    return torch.stack([read(part) for part in parts])
