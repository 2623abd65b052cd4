"""Errors of a layer's output channels, summed over tokens.

A layer's output is ``y = x Wᵀ``, and ``ŷ`` what the quantised layer makes of the same inputs; a
channel's error is ``mean |y − ŷ| / mean |y|``. Inputs are the unchanged model's, so that it is the
layer's own error. All of it is sums: texts can be added one after another and merged in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import protocol as p
from engine.model.network import Held as Held
from engine.model.network import StandIn, whole

LISTED = 16
"""Channels with the largest errors that are listed."""
CHUNK = 1 << 24
"""Weights, and outputs, that are in memory in float32 at once."""


@dataclass(eq=False)
class ChannelSums:
    """Of one weight's output channels; of experts, of all of them, one expert after another."""

    difference: Tensor
    """``Σ |y − ŷ|`` over tokens, float64 ``[channels]``."""
    size: Tensor
    """``Σ |y|``."""
    tokens: Tensor
    """Tokens of each expert, int64 ``[experts]``; of other layers ``[1]``."""
    difference_squared: float = 0.0
    """``Σ (y − ŷ)²`` over tokens and channels."""
    size_squared: float = 0.0

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device) -> ChannelSums:
        """Of no tokens yet.

        Args:
            shape: ``[out, in]`` or ``[experts, out, in]``.
            device: where sums over channels are kept.
        """
        experts = shape[0] if len(shape) == 3 else 1
        zeros = torch.zeros(experts * shape[-2], dtype=torch.float64, device=device)
        return cls(zeros, zeros.clone(), torch.zeros(experts, dtype=torch.int64))

    @torch.no_grad()
    def add(self, inputs: Tensor, weight: Tensor, held: Held, expert: int | None) -> None:
        """Add tokens.

        Args:
            inputs: ``[tokens, in]``, before what a `StandIn` does to them.
            weight: the reference, ``[out, in]``, or of all experts.
            held: what the quantised layer computes with.
            expert: the one that these tokens were given to.
        """
        if not len(inputs):
            return
        found = whole(held)
        changed = inputs
        if isinstance(found, StandIn):
            changed = inputs if found.inputs is None else found.inputs(inputs)
            approx = found.weight
        else:
            approx = found
        own = weight if expert is None else weight[expert]
        approx = approx if expert is None else approx[expert]
        approx = approx.to(own.device, own.dtype)  # as the network computes with it
        first = 0 if expert is None else expert * own.shape[0]
        self.tokens[expert or 0] += len(inputs)
        for tokens, rows in _chunks(len(inputs), own.shape):
            x, w = inputs[tokens].float(), own[rows].float()
            y = x @ w.T
            # The difference of two products would lose what they have in common.
            if changed is inputs:
                apart = x @ (approx[rows].float() - w).T
            else:
                apart = changed[tokens].float() @ approx[rows].float().T - y
            at = slice(first + rows.start, first + rows.stop)
            self.difference[at] += apart.abs().sum(0, dtype=torch.float64)
            self.size[at] += y.abs().sum(0, dtype=torch.float64)
            self.difference_squared += float(apart.square().sum(dtype=torch.float64))
            self.size_squared += float(y.square().sum(dtype=torch.float64))

    def merge(self, other: ChannelSums) -> None:
        """Add what another has seen."""
        self.difference += other.difference
        self.size += other.size
        self.tokens += other.tokens
        self.difference_squared += other.difference_squared
        self.size_squared += other.size_squared

    def fact(self, layer: str, format: str, recipe: str, *, experts: bool) -> p.OutputError:
        """The figures.

        Args:
            layer: its name.
            format: canonical.
            recipe: see `OutputError`.
            experts: whether it is a layer of experts.
        """
        out = len(self.size) // len(self.tokens)
        seen = (self.tokens > 0).to(self.size.device).repeat_interleave(out)
        errors = ratio(self.difference, self.size).cpu()
        seen = seen.cpu()
        known = seen & ~errors.isnan()
        bounds = torch.tensor(p.OUTPUT_ERROR_BOUNDS, dtype=torch.float64)
        bins = torch.bucketize(errors[known], bounds, right=True)
        worst = errors.where(known, -1.0).argsort(descending=True, stable=True)[:LISTED]
        listed = [int(at) for at in worst if bool(known[at]) and float(errors[at]) > 0]
        relative = math.nan
        if self.size_squared > 0:
            relative = math.sqrt(self.difference_squared / self.size_squared)
        elif bool(seen.any()):
            relative = 0.0 if self.difference_squared == 0 else math.inf
        return p.OutputError(
            layer=layer,
            format=format,
            recipe=recipe,
            tokens=int(self.tokens.sum()),
            relative=relative,
            channels=int(known.sum()),
            over_10=int((errors[known] > 0.1).sum()),
            over_50=int((errors[known] > 0.5).sum()),
            counts=torch.bincount(bins, minlength=len(bounds) + 1).tolist(),
            worst=[at % out for at in listed],
            worst_errors=[float(errors[at]) for at in listed],
            worst_experts=[at // out for at in listed] if experts else [],
            unseen_experts=int((self.tokens == 0).sum()) if experts else 0,
            nonfinite=int((seen & errors.isnan()).sum()),
        )


def ratio(difference: Tensor, size: Tensor) -> Tensor:
    """``difference / size``; where both are 0 it is 0, and infinite where only the size is."""
    return torch.where(difference == 0, 0.0, difference / size).where(~size.isnan(), torch.nan)


def _chunks(tokens: int, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Tokens and rows of the weight to multiply at once."""
    height, width = shape
    rows = max(1, min(height, CHUNK // max(1, width)))
    step = max(1, min(tokens, CHUNK // rows))
    for top in range(0, height, rows):
        for left in range(0, tokens, step):
            yield (
                slice(left, min(left + step, tokens)),
                slice(top, min(top + rows, height)),
            )
