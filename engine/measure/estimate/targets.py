"""Targets that losses are taken of: what a network gives them, and draws from what it says."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def less_one(probable: Tensor, targets: Tensor) -> Tensor:
    """``p − e_y``, the gradient of ``−log p_y`` with respect to the logits."""
    found = probable.clone()
    return found.scatter_add_(-1, targets.unsqueeze(-1), torch.full_like(found[..., :1], -1.0))


def uniform(seed: int, draw: int, windows: range, tokens: int) -> Tensor:
    """Uniform numbers ``[windows, tokens]``: a window's own, however windows come together."""
    found = torch.empty(len(windows), tokens)
    for row, window in zip(found, windows, strict=True):
        text = f"{seed} {draw} {window}".encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
        torch.rand(tokens, generator=torch.Generator().manual_seed(number), out=row)
    return found
