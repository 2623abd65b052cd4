"""Codes and scales of GGUF blocks as bytes, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def half_bytes(numbers: Tensor) -> Tensor:
    """float16 numbers ``[blocks]`` as ``[blocks, 2]`` bytes, rounded first where they are wider."""
    return numbers.to(torch.float16).unsqueeze(-1).view(torch.uint8)


def as_half(numbers: Tensor) -> Tensor:
    """Numbers rounded to float16, in float32."""
    return numbers.to(torch.float16).to(torch.float32)


def read_half(pairs: Tensor) -> Tensor:
    """``[blocks, 2]`` bytes as float32 ``[blocks, 1]``."""
    return pairs.contiguous().view(torch.float16).to(torch.float32)


def interleave(codes: Tensor, stride: int, bits: int) -> Tensor:
    """Codes ``[blocks, n]`` as bytes: those ``stride`` apart share one, the first in the low bits.

    ``8 / bits`` runs of ``stride`` codes make ``stride`` bytes.
    """
    runs = codes.reshape(len(codes), -1, 8 // bits, stride)
    packed = runs[:, :, 0].clone()
    for i in range(1, runs.shape[2]):
        packed |= runs[:, :, i] << (bits * i)
    return packed.flatten(1)


def separate(packed: Tensor, stride: int, bits: int) -> Tensor:
    """The uint8 codes ``[blocks, n]`` that `interleave` packed."""
    runs = packed.reshape(len(packed), -1, 1, stride)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((runs >> shifts[:, None]) & ((1 << bits) - 1)).flatten(1)
