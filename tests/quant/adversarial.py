"""Weights that quantisers stumble over, by what is wrong with each."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal numbers of standard deviation .05."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def adversarial(out: int, row: int) -> dict[str, Tensor]:
    """float32 weights ``[out, row]``, all finite."""
    outlier = normal(out, row, seed=1)
    outlier[out // 2, row // 3] = 900.0
    blocks = normal(out, row, seed=2)
    blocks[:, : row // 2] = 0.0
    blocks[0] = 0.0
    ties = (torch.arange(row) % 31 - 15).repeat(out, 1) / 2
    ties[:, ::32] = 7.5
    steps = (torch.arange(out * row).reshape(out, row) % 511 - 255) / 64
    scales = torch.logspace(-30, 30, out)[:, None]
    return {
        "normal": normal(out, row, seed=0),
        "heavy tails": normal(out, row, seed=3) ** 3 * 100,
        "one huge value": outlier,
        "groups of zeros": blocks,
        "all zeros": torch.zeros(out, row),
        "negative zeros": -torch.zeros(out, row),
        "one constant": torch.full((out, row), 0.3),
        "rows of one constant": torch.linspace(-1, 1, out)[:, None].repeat(1, row),
        "negative only": -normal(out, row, seed=4).abs() - 0.01,
        "positive only": normal(out, row, seed=5).abs() + 0.01,
        "evenly spaced": steps,
        "ties": ties,
        "powers of two": torch.randint(-20, 16, (out, row), generator=_seeded()).float().exp2(),
        "float16 source": normal(out, row, seed=6).to(torch.float16).float(),
        "bfloat16 source": normal(out, row, seed=7).to(torch.bfloat16).float(),
        "small": normal(out, row, seed=8) * 1e-6,
        "rows of all magnitudes": normal(out, row, seed=11) * scales,
        "denormal": normal(out, row, seed=9) * 1e-38,
        "least denormal": normal(out, row, seed=10).sign() * 2.0**-149,
    }


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(12)
