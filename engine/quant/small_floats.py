"""8-bit floats (E4M3) and 4-bit floats (E2M1) as ``mxfp4``, ``mxfp8`` and ``nvfp4`` use them."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.quant.rows import table_lookup
from engine.quant.stored import StoredWeight

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of a 4-bit float; the fourth bit of a code is the sign."""

EVEN_CODES = tuple(sign * value / E2M1[1] for value in E2M1 for sign in (-1, 1))
"""4-bit floats as multiples of the least positive one."""


def nearest_e2m1(scaled: Tensor) -> Tensor:
    """uint8 codes of the nearest 4-bit floats, ties to even.

    Magnitudes are steps of a half up to 2, of 1 up to 4, and of 2 from there on.
    """
    size = scaled.abs()
    above = torch.where(size < 4, size.round() + 2, (size / 2).round_() + 4)
    codes = torch.where(size < 2, (size * 2).round_(), above).clamp_(max=7).to(torch.uint8)
    return codes | (scaled < 0).to(torch.uint8) << 3


def e2m1_values(codes: Tensor) -> Tensor:
    """The 4-bit floats that uint8 codes stand for, float32."""
    return table_lookup(torch.tensor([*E2M1, *(-value for value in E2M1)]), codes)


def packed(codes: Tensor) -> Tensor:
    """4-bit codes ``[…, in]``, two a byte ``[…, in / 2]``."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpacked(codes: Tensor) -> Tensor:
    """float32 ``[…, in]`` of bytes ``[…, in / 2]``."""
    return e2m1_values(torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2))


def lost(encoded: StoredWeight, groups: Tensor) -> Tensor:
    """The squared error of every group, float64 ``[rows, groups]``."""
    found = encoded.approx().view_as(groups) - groups
    return found.square_().sum(-1, dtype=torch.float64)
