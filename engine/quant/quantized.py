"""A weight as integer codes with scales and zero points, as an export stores it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def in_groups(matrix: Tensor, group_size: int | None) -> Tensor:
    """View ``[..., in]`` as ``[..., groups, group_size]``; None makes the row one group.

    A row that the group does not divide is padded with zeros, which widen no range that includes 0
    and must be cut off afterwards.
    """
    size = group_size or matrix.shape[-1]
    missing = -matrix.shape[-1] % size
    if missing:
        matrix = functional.pad(matrix, (0, missing))
    return matrix.reshape(*matrix.shape[:-1], matrix.shape[-1] // size, size)


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integer codes of a weight ``[out, in]`` or ``[experts, out, in]``."""

    codes: Tensor
    """int8 in the shape of the weight, from ``−2^(bits−1)`` to ``2^(bits−1) − 1``: signed for
    asymmetric formats too, as compressed-tensors stores them."""
    scale: Tensor
    """``[…, out, groups]`` in the dtype it is stored in; ``[…, out, 1]`` per channel and
    ``[…, 1, 1]`` per tensor."""
    zero_point: Tensor | None
    """In the shape of ``scale``, on the same signed axis as the codes: int8, or in the dtype of
    ``scale`` with ``+hqq``, where it is not whole; None if symmetric."""
    group_size: int | None
    """Weights of a row that share a scale, the last group of a row perhaps fewer; None if all."""

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self.codes.shape

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ = (code − zero_point) · scale``, worked out in float32 and cast last."""
        values = in_groups(self.codes.to(torch.float32), self.group_size)
        if self.zero_point is not None:
            values.sub_(self.zero_point.to(torch.float32).unsqueeze(-1))
        values.mul_(self.scale.to(torch.float32).unsqueeze(-1))
        return values.flatten(-2)[..., : self.shape[-1]].to(dtype)
