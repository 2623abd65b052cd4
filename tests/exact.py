"""Estimates in float32 on every processor, for comparisons to the last digits."""

from __future__ import annotations

import pytest
import torch

from engine.measure.estimate import backward_pass
from engine.model import gradients


def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and gradients in float32, though the processor may multiply bfloat16 faster."""
    monkeypatch.setattr(backward_pass, "product_dtype", lambda device, dtype: torch.float32)
    monkeypatch.setattr(gradients, "has_matrix_units", lambda: False)
