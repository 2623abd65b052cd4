"""Calibration inputs whose channels go together, as those of real layers do."""

from __future__ import annotations

import torch
from torch import Tensor


def correlated(width: int, strength: float, seed: int) -> Tensor:
    """``X Xᵀ`` of inputs that share a few directions, with channels of different size."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(8 * width, width, generator=generator)
    shared = torch.randn(8 * width, max(1, width // 16), generator=generator)
    mixed = torch.randn(max(1, width // 16), width, generator=generator)
    size = torch.rand(width, generator=generator) + 0.5
    inputs = ((1 - strength) * own + strength * shared @ mixed) * size
    return inputs.T @ inputs
