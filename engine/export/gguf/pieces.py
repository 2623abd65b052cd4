"""The tensors that a GGUF file is made of, each made when it is written."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from engine.checkpoint import DiskLayer
from engine.formats.grammar import Format
from engine.ggml_types import GGML_TYPES, NUMBERS

STORED = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""Types of ggml by dtype."""
DTYPES = {name: dtype for dtype, name in STORED.items()}
KEPT = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""The same by format."""
Stored = Callable[[DiskLayer, Format], Tensor]
"""The blocks of a quantised layer, uint8 ``[out, bytes of a row]``; of experts ``[experts, …]``."""


class Piece(NamedTuple):
    """One tensor of the file."""

    name: str
    sources: tuple[str, ...]
    """Its names in the checkpoint: one, that of every expert, or none for factors of the config."""
    type: str
    """Its type in ggml."""
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    """What is written, row by row: uint8 if quantised, else numbers."""

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        kind = GGML_TYPES[NUMBERS[self.type]]
        return prod(self.shape) // kind.block * kind.bytes
