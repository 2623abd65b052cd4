"""Divergence of attention probabilities, head by head.

    KL(reference ‖ recipe) = Σ p log(p / q)        mean over queries, nats

Probabilities exist only where attention is computed step by step ("eager"), so one block at a time
is run again on the first positions of a few windows, with the states of both networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.network import Held, Network
from engine.model.transformers_internals import eager_attention, takes_eager_attention

WINDOWS = 2
"""Windows whose attention is compared."""
POSITIONS = 512
"""First positions of each: probabilities take their square."""


def why_no_attention(network: Network) -> str:
    """Why attention cannot be compared; empty if nothing is known against it."""
    kind = type(network.model).__name__
    if not network.resumable:
        return f"{kind} cannot be run block by block: {network.why_not_resumable}"
    if not takes_eager_attention(network.model):
        return f"{kind} has its own implementation of attention, which returns no probabilities"
    return ""


@torch.no_grad()
def probabilities(
    network: Network, ids: Tensor, block: int, state: Tensor, held: Mapping[str, Held]
) -> list[Tensor]:
    """The attention probabilities in one block, of each attention module ``[heads, T, T]``.

    Args:
        network: at rest.
        ids: ``[1, T]``.
        block: its index.
        state: its input.
        held: what its layers compute with.

    Raises:
        Preempted: a more urgent job waits.
    """
    found: list[Tensor] = []

    def take(_module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, tuple) or len(output) < 2:
            return
        second = output[1]
        if not isinstance(second, Tensor) or second.dim() != 4 or second.shape[0] != 1:
            return
        square = second.shape[-1] == second.shape[-2] == ids.shape[1]
        if square and all(second is not each for each in found):  # a module may pass it on
            found.append(second)

    with ExitStack() as stack:
        stack.enter_context(network.holding(held))
        stack.enter_context(eager_attention(network.model))
        for module in network.blocks.modules[block].modules():
            stack.callback(module.register_forward_hook(take).remove)
        network.output_of(ids, block, network.resuming(block, state))
    return [each[0] for each in found]


def divergence(reference: Tensor, recipe: Tensor) -> list[float]:
    """KL of each head, nats.

    Args:
        reference: probabilities ``[heads, T, T]``; those of a query may sum to less than 1, where a
            model also attends to something that is not a token.
        recipe: the same of the other network. A probability too small for float32 counts as the
            smallest normal number.
    """
    return [_divergence(p.double(), q.double()) for p, q in zip(reference, recipe, strict=True)]


def _divergence(p: Tensor, q: Tensor) -> float:
    least = torch.finfo(torch.float32).tiny
    each = torch.special.xlogy(p, p) - torch.special.xlogy(p, q.clamp(min=least))
    total = each.sum(-1)
    other, other_q = 1 - p.sum(-1), 1 - q.sum(-1)
    if float(other.max()) > BESIDE:  # an attention sink's share
        other, other_q = other.clamp(min=0), other_q.clamp(min=least)
        total = total + torch.special.xlogy(other, other) - torch.special.xlogy(other, other_q)
    return float(total.mean())


BESIDE = 1e-2
"""Share of a query's attention beside all tokens that is more than rounding, in 16 bits too."""
