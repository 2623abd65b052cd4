"""GPTQ, AWQ and AutoRound: ``P.qweight``, several codes per word. Recognised, not read."""

from __future__ import annotations

from engine.checkpoint.quantised.reader import Reader

READER = Reader(
    name="gptq, awq or auto-round",
    recognises=lambda _, tensor: tensor.name.endswith(".qweight") and "float" not in tensor.dtype,
)
