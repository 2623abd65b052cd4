"""A layout of quantised weights on disk: int8, with the largest magnitude of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.quantised.reader import Reader, register_reader

if TYPE_CHECKING:
    from torch import Tensor


def _read(checkpoint: Checkpoint, name: str, scale: str, expert: int | None) -> Tensor:
    return checkpoint.read(name).float() * checkpoint.read(scale).unsqueeze(-1) / 127


READER = Reader(
    name="example-int8",
    recognises=lambda _, tensor: tensor.dtype == "int8" and tensor.name.endswith(".weight"),
    methods=("example",),
    scale=((".weight", ".row_max"),),
    read=_read,
)


def register() -> None:
    register_reader(READER)
