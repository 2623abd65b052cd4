"""Capabilities of the processor."""

from __future__ import annotations

from engine.model.torch_internals import has_matrix_tiles


def has_matrix_units() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones (AMX)."""
    return has_matrix_tiles()
