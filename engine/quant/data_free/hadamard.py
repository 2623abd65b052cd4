"""``+hadamard``: rotate a weight so that no entry stands out.

The randomised Hadamard transform of QuIP# (Tseng et al. 2024, arXiv 2402.04396, §3): signs, then
orthogonal Walsh–Hadamard transforms, of the inputs and of the outputs, both as there; what is
rounded is ``W' = Uᵀ W V``, and a simulation computes with ``Ŵ = U Q(W') Vᵀ``. QuaRot (Ashkboos et
al. 2024, arXiv 2404.00456) turns the residual stream once for the whole model; here every layer is
turned on its own, which asks nothing of its neighbours. Inputs ``Vᵀ x`` have ``H' = Vᵀ H V``, and
``tr(ΔW H ΔWᵀ)`` is what it is for the rotated weight.

A width takes transforms as long as the greatest power of two that divides it, side by side; an odd
one has signs alone. Signs are a fixed function of the place, so an artefact need not store them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.formats.family import family_of
from engine.formats.grammar import Format
from engine.quant.rows import finite_and_broken, matrices, restored, row_chunks
from engine.quant.stored import StoredWeight


@dataclass(frozen=True, eq=False)
class Rotated:
    """A weight ``[out, in]`` or ``[experts, out, in]`` that was rotated before it was rounded."""

    stored: StoredWeight
    """The rotated weight, as its family stores it."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ``: rotated back in float32, cast last."""
        found = self.stored.approx()
        for matrix in matrices(found):
            rotate_back(matrix)
        return found.to(dtype)


def rotates(fmt: Format) -> bool:
    """Whether a weight is rotated before its family sees it; some rotate by themselves."""
    asked = any(method.name == "hadamard" for method in fmt.methods)
    return asked and not family_of(fmt).rotates_itself


def write_rotated(weight: Tensor, out: Tensor) -> None:
    """Write ``[out, in]`` rotated into ``out``, float32; values that are not finite count as 0."""
    for rows in row_chunks(weight):
        out[rows] = finite_and_broken(weight[rows])[0]
    rotate(out)


def write_rotated_back(weight: Tensor, out: Tensor) -> None:
    """Undo `rotate` of ``out``, in place; values of ``weight`` that are not finite are copied."""
    rotate_back(out)
    for rows in row_chunks(out):
        _, broken = finite_and_broken(weight[rows])
        if broken is not None:
            out[rows] = restored(out[rows], broken, weight[rows])


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


def rotate_inputs(inputs: Tensor) -> Tensor:
    """``Vᵀ x`` of float32 inputs ``[…, in]``: what a rotated weight multiplies."""
    return _transform(inputs * signs(inputs.shape[-1], inputs.device))


def rotate_inputs_back(inputs: Tensor) -> Tensor:
    """Undo `rotate_inputs`."""
    return _transform(inputs) * signs(inputs.shape[-1], inputs.device)


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
