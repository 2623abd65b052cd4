"""Capabilities of the processor."""

from __future__ import annotations

from engine.model.torch_internals import multiplies_bfloat16


def has_matrix_units() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    return multiplies_bfloat16()
