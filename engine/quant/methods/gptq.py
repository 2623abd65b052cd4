"""``+gptq``: round column by column, and let the columns to come make up for the error.

GPTQ (Frantar et al. 2022, arXiv 2210.17323): for every row, ``tr(ΔW H ΔWᵀ)`` with ``H = X Xᵀ`` is
made small by rounding weight ``q`` and moving those not yet rounded by
``δ = −(w_q − quant(w_q)) / [H⁻¹]_qq · (H⁻¹)_{:,q}`` (equation 2), with ``H⁻¹`` from one Cholesky
factor for all rows (section 3.3, step 3; algorithm 1). Follows ``GPTQ.fasterquant`` of IST-DASLab's
gptq, names too: ``H``, ``Hinv``, ``Err1``. One thing differs: a group that is reached takes its
range from weights moved so far by all columns before it; the reference leaves out those of the same
block of 128.

Memory beside the weight ``[out, in]`` and ``H``: up to three float32 ``[in, in]`` while ``H`` is
inverted, one from then on, a float32 copy of the weight, and its codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.quant.formats import Format
from engine.quant.integer import (
    Parameters,
    find_parameters,
    group_parameters,
    integer_codes,
    integer_values,
    stored_zero_points,
)
from engine.quant.methods.hadamard import rotate_back
from engine.quant.quantized import Quantized, in_groups
from engine.quant.storage import why_not_held

BLOCK = 128
"""Columns whose errors are passed on to the rest at once."""

_MOST_DAMPING = 100.0


@dataclass(frozen=True, eq=False)
class Solved:
    """Codes found by GPTQ."""

    stored: Quantized
    """Codes in the order they are stored in."""
    order: Tensor | None
    """int64 ``[in]``: the input channel of every stored column; None if they are as they were.
    Only ``:actorder`` without ``:static`` reorders columns that have groups."""
    notes: tuple[str, ...]
    """What a person should know: damping that was raised, channels that were always 0."""
    rotated: bool = False
    """Whether the weight was rotated before, which its stored form does not know."""

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ`` with its columns where they were, worked out in float32 and cast last."""
        found = self.stored.approx()
        if self.order is not None:
            found = found[:, self.order.argsort()]
        if self.rotated:
            rotate_back(found)
        return found.to(dtype)


def gptq(
    weight: Tensor, H: Tensor, fmt: Format, scale_dtype: torch.dtype, name: str = "weight"
) -> Solved:
    """Round ``[out, in]`` so that its output on calibration inputs changes least.

    Args:
        weight: The weight; not modified.
        H: ``X Xᵀ`` over the inputs, float32 ``[in, in]``, up to a factor; not modified.
        fmt: An integer format with ``+gptq``, whose ``:damp`` (a share of the mean of the
            diagonal), ``:actorder`` (columns in falling order of it) and ``:static`` (parameters of
            all groups beforehand) are followed, and those of ``+clip`` and ``+hqq``.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for messages.

    Raises:
        FormatError: Another format; a weight or ``H`` that is not finite, or that do not fit; a
            scale too large for its dtype; an ``H`` that no damping makes positive definite.
    """
    damp, actorder, static = check(weight, H, fmt, name)
    notes = []
    diagonal = H.diagonal()
    dead = diagonal == 0
    W = weight.detach().to(torch.float32).T.clone(memory_format=torch.contiguous_format)
    if dead.any():
        W[dead] = 0
        notes.append(f"{name}: {int(dead.sum())} input channels were always 0: weights set to 0")
    order = torch.argsort(diagonal, descending=True, stable=True) if actorder else None
    Hinv, used = _inverse_factor(H, dead, order, damp, name)
    if used != damp:
        notes.append(f"{name}: H is singular at damping {damp:g}, which was raised to {used:g}")

    in_place = order is None or static or fmt.group_size is None
    fixed = None
    if static or fmt.strategy != "group":
        groups = in_groups(W.T, fmt.group_size)
        fixed = find_parameters(lambda: [groups], W.shape[0], fmt, scale_dtype, name)
    if order is not None:
        W = W[order]
    place = list(range(len(W))) if order is None else order.tolist()
    codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
    found: list[Parameters] = []
    group = fmt.group_size or len(W)
    now = fixed
    for i1, i2 in _blocks(len(W), fmt.group_size if fixed is None else None):
        W1, Hinv1 = W[i1:i2], Hinv[i1:i2, i1:i2]
        Err1 = torch.empty_like(W1)
        for i in range(i2 - i1):
            if fixed is None and (i1 + i) % group == 0:
                part = W[i1 + i : i1 + i + group].T.unsqueeze(1).contiguous()
                now = group_parameters(part, part.shape[-1], fmt, scale_dtype, name)
                found.append(now)
            assert now is not None
            parameters = now if fixed is None else _of_group(fixed, place[i1 + i] // group)
            w = W1[i]
            q = integer_codes(w.view(-1, 1, 1), parameters, fmt)
            codes[i1 + i] = q.view(-1)
            err = (w - integer_values(q, parameters).view(-1)) / Hinv1[i, i]
            W1[i + 1 :].addr_(Hinv1[i, i + 1 :], err, alpha=-1)
            Err1[i] = err
        W[i2:].addmm_(Hinv[i1:i2, i2:].T, Err1, alpha=-1)

    if in_place and order is not None:
        codes = codes[order.argsort()]
    scale, point = _joined(fixed, found)
    stored = Quantized(
        codes.T.contiguous(),
        scale,
        None if point is None else stored_zero_points(point, fmt, scale_dtype),
        fmt.group_size,
    )
    return Solved(stored, None if in_place else order, tuple(notes))


def check(weight: Tensor, H: Tensor, fmt: Format, name: str) -> tuple[float, bool, bool]:
    """The damping, and whether columns are reordered, and groups fixed beforehand.

    Raises:
        FormatError: As `gptq`, but for what only its arithmetic finds.
    """
    options = [dict(method.options) for method in fmt.methods if method.name == "gptq"]
    if fmt.family != "integer" or not options:
        raise FormatError(f"{name}: {fmt} is no integer format with '+gptq'")
    if weight.dim() != 2:
        raise FormatError(f"{name}: GPTQ takes one weight [out, in], not {list(weight.shape)}")
    if (why := why_not_held(fmt, weight.shape)) is not None:
        raise FormatError(f"{name}: {why}")
    if H.shape != (weight.shape[1], weight.shape[1]):
        raise FormatError(
            f"{name}: H has the shape {list(H.shape)}, the weight {weight.shape[1]} inputs"
        )
    if not weight.isfinite().all():
        raise FormatError(f"{name}: GPTQ needs finite weights, and some are NaN or infinite")
    if not H.isfinite().all():
        raise FormatError(f"{name}: H, the sum of x·xᵀ over calibration inputs, is not finite")
    if not H.diagonal().any():
        raise FormatError(f"{name}: H is all 0: no calibration token reached it")
    damp = float(options[0].get("damp", 0.01))
    return damp, "actorder" in options[0], "static" in options[0]


def _inverse_factor(
    H: Tensor, dead: Tensor, order: Tensor | None, damp: float, name: str
) -> tuple[Tensor, float]:
    """The upper Cholesky factor of ``H⁻¹``, and the damping it took: ten times more until it is."""
    mean = float(H.diagonal()[~dead].mean(dtype=torch.float64))
    used = damp
    while True:
        damped = H.to(torch.float32, copy=True) if order is None else H[order][:, order].float()
        added = (dead.to(torch.float32) + used) * mean
        damped.diagonal().add_(added if order is None else added[order])
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            del factor
            Hinv, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and Hinv.isfinite().all():
                return Hinv, used
        used *= 10
        if used > _MOST_DAMPING:
            raise FormatError(
                f"{name}: H is not positive definite, even with {used / 10:g} of its mean "
                "added to the diagonal: is it a sum of x·xᵀ?"
            )


def _blocks(columns: int, group_size: int | None) -> Iterator[tuple[int, int]]:
    """Runs of at most `BLOCK` columns: a shorter group lies within one, a longer begins one.

    So the weights of a group have been moved by all columns before when it is reached.
    """
    step = BLOCK if group_size is None else max(1, BLOCK // group_size) * group_size
    for start in range(0, columns, step):
        end = min(start + step, columns)
        yield from ((first, min(first + BLOCK, end)) for first in range(start, end, BLOCK))


def _of_group(parameters: Parameters, group: int) -> Parameters:
    """The parameters of one group of all rows, ``[out, 1]`` each, of one for all ``[1, 1]``."""
    group = min(group, parameters.scale.shape[1] - 1)
    part = slice(group, group + 1)
    point = parameters.zero_point
    return Parameters(
        parameters.scale[:, part],
        None if point is None else point[:, part],
        parameters.divisor[:, part],
    )


def _joined(fixed: Parameters | None, found: list[Parameters]) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points ``[out, groups]``."""
    if fixed is not None:
        return fixed.scale, fixed.zero_point
    points = [each.zero_point for each in found if each.zero_point is not None]
    return torch.cat([each.scale for each in found], 1), torch.cat(points, 1) if points else None
