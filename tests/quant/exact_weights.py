"""Weights that come out the same on every machine, for comparison with files made elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHAPE = (16, 512)


def _bell(seed: int, *shape: int) -> Tensor:
    """Nearly normal numbers of standard deviation 1/16, from sums of integers: exact in float32."""
    draws = np.random.RandomState(seed).randint(0, 1 << 12, (12, *shape))
    return torch.from_numpy(draws.sum(0) - 12 * (1 << 11)).float() / (1 << 16)


def exact_weights() -> dict[str, Tensor]:
    """float32 weights of `SHAPE`."""
    outlier = _bell(1, *SHAPE)
    outlier[3, 17] = 900.0
    zeros = _bell(2, *SHAPE)
    zeros[:, :256] = 0
    zeros[5, 256:288] = 0
    columns = torch.arange(SHAPE[1])
    return {
        "bell": _bell(0, *SHAPE),
        "heavy tails": _bell(3, *SHAPE) ** 3 * 64,
        "one huge value": outlier,
        "groups of zeros": zeros,
        "all zeros": torch.zeros(SHAPE),
        "one constant": torch.full(SHAPE, 0.3),
        "positive only": _bell(4, *SHAPE).abs() + 0.0078125,
        "negative only": -_bell(5, *SHAPE).abs() - 0.0078125,
        "ties": ((columns % 31 - 15) / 2).repeat(SHAPE[0], 1),
        "evenly spaced": ((torch.arange(16)[:, None] * 37 + columns * 5) % 511 - 255) / 64,
        "bfloat16 source": _bell(6, *SHAPE).to(torch.bfloat16).float(),
        "small": _bell(7, *SHAPE) / (1 << 14),
    }


def exact_importance() -> Tensor:
    """How much each input matters, ``[in]``: from .02 to 1."""
    return (torch.arange(SHAPE[1]) * 29 % 127 + 2).float() / 128
