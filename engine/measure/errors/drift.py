"""Drift of hidden states: how far two states are apart, and noise of the same size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine import protocol as p


class Mean:
    """A mean over tokens, added up batch by batch; NaN of none."""

    def __init__(self) -> None:
        self.total, self.tokens = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Add a figure of each token."""
        self.total += float(values.sum(dtype=torch.float64))
        self.tokens += values.numel()

    @property
    def value(self) -> float:
        """The mean."""
        return self.total / self.tokens if self.tokens else math.nan


@torch.no_grad()
def apart(state: Tensor, reference: Tensor) -> Tensor:
    """``‖h′ − h‖ / ‖h‖`` of every token, float64, of the shape of the states without the last.

    0 where both are equal, infinite where only the reference is 0.
    """
    wanted = reference.double()
    difference = torch.linalg.vector_norm(state.double() - wanted, dim=-1)
    size = torch.linalg.vector_norm(wanted, dim=-1)
    return torch.where(difference == 0, 0.0, difference / size)


@torch.no_grad()
def with_noise(state: Tensor, drifted: Tensor, seeds: list[int]) -> Tensor:
    """The reference's state with noise of the drift's norm at every token.

    Args:
        state: the reference's, ``[windows, tokens, hidden]``.
        drifted: the recipe's.
        seeds: one for each window, so that micro-batches change nothing; of a state of another
            shape the first is used.
    """
    drift = torch.linalg.vector_norm((drifted.double() - state.double()), dim=-1, keepdim=True)
    if state.shape[0] == len(seeds):
        drawn = torch.stack([_normal(tuple(state.shape[1:]), seed) for seed in seeds])
    else:
        drawn = _normal(tuple(state.shape), seeds[0])
    noise = drawn.to(state.device).double()
    noise = noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True) * drift
    noisy: Tensor = state.double() + noise
    return noisy.to(state.dtype)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


class DriftSums:
    """The figures of one block, added up over micro-batches."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.drift, self.injected, self.propagated, self.control = Mean(), Mean(), Mean(), Mean()
        self.attention: list[list[float]] = []
        """For each window, the KL of each head."""

    def figures(self) -> p.BlockDrift:
        """The figures over all that was added."""
        heads = zip(*self.attention, strict=True)
        return p.BlockDrift(
            block=self.block,
            drift=self.drift.value,
            injected=self.injected.value,
            propagated=self.propagated.value,
            control=self.control.value,
            attention=[math.fsum(each) / len(each) for each in heads],
        )
