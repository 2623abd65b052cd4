"""``+gptq``: round column by column, and compensate the error in the remaining columns.

GPTQ (Frantar et al. 2022, arXiv 2210.17323): for every row, ``tr(ΔW H ΔWᵀ)`` with ``H = X Xᵀ`` is
made small by rounding weight ``q`` and moving those not yet rounded by
``δ = −(w_q − quant(w_q)) / [H⁻¹]_qq · (H⁻¹)_{:,q}`` (equation 2), with ``H⁻¹`` from one Cholesky
factor for all rows (section 3.3, step 3; algorithm 1). Follows ``GPTQ.fasterquant`` of IST-DASLab's
gptq, names too: ``H``, ``Hinv``, ``Err1``, ``Q1``. One thing differs: a group that is reached takes
its range from weights moved so far by all columns before it; the reference leaves out those of the
same block of 128.

Where several columns are rounded together, as eight of ``e8-2``, all keep what they were rounded to
while the error of each is passed on in turn. That is forward substitution, so the columns to come
are moved by ``ΔW_B [H⁻¹]_BB⁻¹ [H⁻¹]_{B,:}``: block LDLQ of QuIP# (Tseng et al. 2024, arXiv
2402.04396, §4).

Memory beside the weight ``[out, in]`` and ``H``: up to three float32 ``[in, in]`` while ``H`` is
inverted, one from then on, a float32 copy of the weight, and its codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import FormatError
from engine.formats.grammar import Format
from engine.formats.storage import why_not_held
from engine.quant.arithmetic import columns_of
from engine.quant.data_free.hadamard import rotate_back
from engine.quant.stored import StoredWeight, moved

BLOCK = 128
"""Columns whose errors are applied to the rest at once."""

_SHARED = 1 << 15
"""Number of elements from which PyTorch splits an elementwise operation among threads."""

_MOST_DAMPING = 100.0


@dataclass(frozen=True, eq=False)
class Solved:
    """Codes found by GPTQ."""

    stored: StoredWeight
    """Codes in the order they are stored in."""
    order: Tensor | None
    """int64 ``[in]``: the input channel of every stored column; None if they are as they were.
    Only ``:actorder`` without ``:static`` reorders columns that have groups."""
    notes: tuple[str, ...]
    """For the user: damping that was raised, channels that were always 0."""
    rotated: bool = False
    """Whether the weight was rotated before, which its stored form does not say."""

    def on(self, device: torch.device) -> Solved:
        """The same on another device."""
        order = None if self.order is None else self.order.to(device)
        return dataclasses.replace(self, stored=moved(self.stored, device), order=order)

    def approx(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``Ŵ`` with its columns in their original order, computed in float32 and cast last."""
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
        fmt: A format with ``+gptq``, whose ``:damp`` (a share of the mean of the diagonal),
            ``:actorder`` (columns in falling order of it) and ``:static`` (parameters of all groups
            beforehand) are followed, and so are ``+clip`` and ``+hqq``. With ``+hadamard`` the
            weight and ``H`` are those that were rotated: see `engine.quant.solve`.
        scale_dtype: The dtype that scales are stored in.
        name: The tensor, for messages.

    Raises:
        FormatError: A format without ``+gptq``; a weight or ``H`` that is not finite, or that do
            not fit; a scale too large for its dtype; an ``H`` that no damping makes positive
            definite.
    """
    damp, actorder, static = check(weight, H, fmt, name)
    notes = []
    diagonal = H.diagonal()
    dead = diagonal == 0
    W = weight.detach().to(torch.float32).T.clone(memory_format=torch.contiguous_format)
    if dead.any():
        W[dead] = 0
        count = int(dead.sum())
        channels = "input channel was" if count == 1 else "input channels were"
        notes.append(f"{name}: {count} {channels} always 0: weights set to 0")
    order = torch.argsort(diagonal, descending=True, stable=True) if actorder else None
    Hinv, used = _inverse_factor(H, dead, order, damp, name)
    if used != damp:
        notes.append(f"{name}: H is singular at damping {damp:g}, which was raised to {used:g}")

    columns = columns_of(W, fmt, scale_dtype, name)
    group = columns.group
    if fmt.strategy == "block" and group is None and not fmt.options:
        notes.append(
            f"{name}: blocks of {fmt.group_size} run across the ends of its rows of {len(W)}: "
            "their maxima were found beforehand"
        )
    if static and group is not None:
        for start in range(0, len(W), group):
            columns.fix(W[start : start + group])
        group = None
    if order is not None:
        W = W[order]
    # Columns whose parameters were found beforehand stay where they were.
    in_place = order is None or group is None
    place = range(len(W)) if order is None or not in_place else order.tolist()
    for i1, i2 in _blocks(len(W), group):
        W1, Hinv1 = W[i1:i2], Hinv[i1:i2, i1:i2]
        Err1 = torch.empty_like(W1)
        for i in range(i2 - i1):
            if group is not None and (i1 + i) % group == 0:
                columns.fix(W[i1 + i : i1 + i + group])
            if i % columns.at_once == 0:
                Q1 = columns.round(place[i1 + i], W1[i : i + columns.at_once])
            err = (W1[i] - Q1[i % columns.at_once]) / Hinv1[i, i]
            _move(W1[i + 1 :], Hinv1[i, i + 1 :], err)
            Err1[i] = err
        W[i2:].addmm_(Hinv[i1:i2, i2:].T, Err1, alpha=-1)
    return Solved(columns.stored(), None if in_place else order, tuple(notes))


def _move(W1: Tensor, h: Tensor, err: Tensor) -> None:
    """``W1 −= h errᵀ``, in parts that are too small for PyTorch to split among threads.

    Threads that synchronise at every column take longer than one alone, on a busy machine a hundred
    times as long; and one alone gives the same bits however many threads there are. A GPU takes all
    at once.
    """
    if W1.device.type != "cpu":
        W1.addr_(h, err, alpha=-1)
        return
    rows = (_SHARED - 1) // len(err) or len(W1)
    for start in range(0, len(W1), max(1, rows)):
        part = slice(start, start + rows)
        W1[part].addr_(h[part], err, alpha=-1)


def check(weight: Tensor, H: Tensor, fmt: Format, name: str) -> tuple[float, bool, bool]:
    """The damping, whether columns are reordered, and whether groups are fixed in advance.

    Raises:
        FormatError: As in `gptq`, except for errors that only its arithmetic finds.
    """
    options = [dict(method.options) for method in fmt.methods if method.name == "gptq"]
    if not options:
        raise FormatError(f"{name}: {fmt} has no '+gptq'")
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
    """The upper Cholesky factor of ``H⁻¹``, and its damping, raised tenfold until it exists."""
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
    """Runs of at most `BLOCK` columns: a shorter group lies within one, a longer one starts one.

    So all earlier columns have updated the weights of a group when it is reached.
    """
    step = BLOCK if group_size is None else max(1, BLOCK // group_size) * group_size
    for start in range(0, columns, step):
        end = min(start + step, columns)
        yield from ((first, min(first + BLOCK, end)) for first in range(start, end, BLOCK))
