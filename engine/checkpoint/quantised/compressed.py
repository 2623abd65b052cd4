"""Packed forms of compressed-tensors: ``P.weight_packed``. Recognised, not read.

Its ``float-quantized`` is not packed: `engine.checkpoint.quantised.float8` reads it.
"""

from __future__ import annotations

from engine.checkpoint.quantised.reader import Reader

READER = Reader(
    name="compressed-tensors",
    recognises=lambda _, tensor: (
        tensor.name.endswith(".weight_packed") and "float" not in tensor.dtype
    ),
)
