"""The plainest PyTorch functions for the figures of a triage: ``python plain_triage.py FILE``.

What one writes down first: a tensor at a time in float32, one expression after the other. Imports
nothing of ours, and prints the seconds that it took.
"""

from __future__ import annotations

import sys
import time

import torch
from safetensors import safe_open
from torch import Tensor

FORMATS = ((4, 128, False), (4, 32, False), (8, None, True), (3, 128, False))
"""Bits, weights in a group, whether symmetric: int4-g128, int4-g32, int8, int3-g128."""


def statistics(w: Tensor, sigma: float = 4.0) -> tuple[float, ...]:
    """Outliers, the range without them, moments, faults, and the worst column."""
    x = w.float()
    away = x - x.mean()
    std = away.square().mean().sqrt()
    outlier = away.abs() > sigma * std
    inner = x[~outlier]
    rms = away.square().mean(0).sqrt()
    peak = away.abs().amax(0)
    dwarfs = rms > 3 * rms[rms > 0].median()
    denormal = (x != 0) & (x.abs() < torch.finfo(w.dtype).tiny)
    found = (
        *(x.mean(), std, x.abs().max(), outlier.sum(), denormal.sum()),
        (x.max() - x.min()) / (inner.max() - inner.min()),
        away.pow(4).mean() / std.pow(4) - 3,
        *(x.isnan().sum(), x.isinf().sum()),
        *((x == 0).all(1).sum(), (x == 0).all(0).sum()),
        (peak * dwarfs).max() / std,
    )
    return tuple(map(float, found))


def errors(w: Tensor, bits: int, group: int | None, symmetric: bool) -> tuple[float, ...]:
    """Quantise, dequantise and compare."""
    x = w.float().unflatten(1, (-1, group or w.shape[1]))
    lo = x.amin(-1, keepdim=True).clamp(max=0)
    hi = x.amax(-1, keepdim=True).clamp(min=0)
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if symmetric:
        scale = torch.maximum(-lo, hi) / ((q_max - q_min) / 2)
        zero_point = torch.zeros_like(scale)
    else:
        scale = (hi - lo) / (q_max - q_min)
        zero_point = (q_min - lo / scale).clamp(q_min, q_max).round()
    scale = scale.half().float()
    codes = (x / scale + zero_point).clamp(q_min, q_max).round()
    gap = (codes - zero_point) * scale - x
    signal, noise = x.square().sum(), gap.square().sum()
    found = (noise.sqrt(), (noise / signal).sqrt(), gap.abs().max(), gap.abs().mean())
    return tuple(map(float, (*found, 10 * torch.log10(signal / noise))))


def main(file: str) -> None:
    """Measure every matrix of a file."""
    begun = time.perf_counter()
    with torch.no_grad(), safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dictionary
            if len(tensors.get_slice(name).get_shape()) == 2:
                w = tensors.get_tensor(name)
                statistics(w)
                for fmt in FORMATS:
                    errors(w, *fmt)
    print(f"{time.perf_counter() - begun:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
