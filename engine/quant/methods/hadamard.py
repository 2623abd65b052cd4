"""``+hadamard``: rotate a weight so that no entry of it stands out.

The randomised Hadamard transform of QuIP# (Tseng et al. 2024, arXiv 2402.04396, §3): signs, then
orthogonal Walsh–Hadamard transforms, of the inputs and of the outputs. A width takes transforms as
long as the greatest power of two that divides it, side by side; an odd one has signs alone. Signs
are a fixed function of the place, so an artefact need not store them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quant.rows import row_chunks


def rotate(weight: Tensor) -> None:
    """Rotate float32 ``[out, in]`` on both sides, in place, a few rows or columns at a time."""
    for side in (weight, weight.T):
        for part in row_chunks(side):
            side[part] = _transform(side[part] * signs(side.shape[1], weight.device))


def rotate_back(weight: Tensor) -> None:
    """Undo `rotate`, in place."""
    for side in (weight.T, weight):
        for part in row_chunks(side):
            side[part] = _transform(side[part]) * signs(side.shape[1], weight.device)


def signs(width: int, device: torch.device) -> Tensor:
    """Signs ``[width]`` that look random: the top bit of SplitMix64 of the place."""
    mixed = torch.arange(1, width + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        # A shift of int64 keeps its sign, and the mask takes that away.
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
    return 1 - 2 * (mixed < 0).to(torch.float32)


def _transform(rows: Tensor) -> Tensor:
    """Orthogonal Walsh–Hadamard transforms along the last dimension; each undoes itself."""
    width = rows.shape[-1]
    length = int(width & -width)
    found = rows.contiguous()
    half = 1
    while half < length:
        first, second = found.view(*rows.shape[:-1], -1, 2, half).unbind(-2)
        found = torch.stack([first + second, first - second], dim=-2).view(rows.shape)
        half *= 2
    return found.mul(float(length) ** -0.5)
