"""Prompts that fail against prompts that do not: what is different inside the model."""

from __future__ import annotations

import msgspec


class ContrastedChannel(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An input channel of a layer, in the reference."""

    layer: str
    channel: int
    failing: float
    """Mean absolute value over the tokens of prompts that fail, without the first of each."""
    healthy: float
    """The same of the others."""
    difference: float
    """Mean logarithm on failing prompts minus that on the others, each value plus the layer's mean:
    a channel that is small everywhere does not count."""
    chance: float
    """Of so large a difference in any channel of any layer, were it chance which prompts fail."""
    share: float = float("nan")
    """Of the layer's output error on failing prompts, the part that comes in by this channel:
    ``E[x²]·‖ΔW‖²`` of the channel over the sum of all."""
    share_healthy: float = float("nan")


class ContrastedLayer(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The error of a layer's outputs, on the reference's inputs."""

    layer: str
    failing: float
    """``‖x ΔWᵀ‖ / ‖x Wᵀ‖``, mean over the prompts that fail."""
    healthy: float
    difference: float
    """As of a channel."""
    chance: float
    """As of a channel, among all layers."""


class ContrastedHead(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A head of attention, reference against recipe on the same text."""

    block: int
    head: int
    module: int = 0
    """Which of the attention modules of the block."""
    failing: float
    """``KL(reference ‖ recipe)`` of its probabilities, nats a query, mean over failing prompts."""
    healthy: float
    difference: float
    """As of a channel."""
    chance: float
    """As of a channel, among all heads."""
