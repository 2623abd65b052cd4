"""Stored forms in as few bytes as a few lines make of them, for weights that wait in memory.

Most families store packed codes already. Integer codes, one per byte so that exports can lay them
out as they like, are packed two per byte here if they have at most 4 bits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.quant.data_free.hadamard import Rotated
from engine.quant.quantized import Quantized
from engine.quant.stored import StoredWeight


@dataclass(frozen=True, eq=False)
class Nibbles:
    """Integer codes from −8 to 7, two per byte."""

    codes: Tensor
    """uint8 ``[⌈weights / 2⌉]``: code + 8; those of the first half of the weights in the low bits,
    so that both halves are unpacked without interleaving them."""
    without: Quantized
    """The rest of the stored form: its codes are empty, of the shape ``[0]``."""
    shape: torch.Size

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``, as the form that was packed has it."""
        half, count = len(self.codes), self.shape.numel()
        codes = torch.empty(2 * half, dtype=torch.uint8, device=self.codes.device)
        torch.bitwise_and(self.codes, 15, out=codes[:half])
        torch.bitwise_right_shift(self.codes, 4, out=codes[half:])
        signed = codes[:count].view(torch.int8).sub_(8).view(self.shape)
        return dataclasses.replace(self.without, codes=signed).approx(dtype)


def packed(form: StoredWeight) -> StoredWeight:
    """A stored form in fewer bytes, or itself; ``approx`` gives the same."""
    if isinstance(form, Rotated):
        return Rotated(packed(form.stored))
    if not isinstance(form, Quantized) or not form.codes.numel():
        return form
    lo, hi = form.codes.aminmax()
    if lo < -8 or hi > 7:
        return form
    flat = (form.codes + 8).view(torch.uint8).flatten()
    half = -(-len(flat) // 2)
    codes = flat[:half].clone()
    codes[: len(flat) - half] |= flat[half:] << 4
    rest = dataclasses.replace(form, codes=form.codes.new_empty(0))
    return Nibbles(codes, rest, form.codes.shape)
