"""Arithmetic cost of a forward: multiplications per token in every block, and in the head.

Only products with weights are counted. Of experts only those that a token is routed to count, or a
mixture would seem to have blocks many times as expensive as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.model.layers import Layer
from engine.model.network import Network

EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
)
"""Config names for the number of experts a token is routed to."""
LOGITS = 2
"""The head's product, and softmax and KL, which read the logits several times at similar cost."""


@dataclass(frozen=True)
class ForwardCost:
    """Multiplications per token."""

    blocks: tuple[float, ...]
    """Of each block."""
    head: float
    """Of the head, softmax and KL included."""

    @property
    def head_in_blocks(self) -> float:
        """Cost of the head, in blocks of average cost; 1 if blocks have no layers."""
        body = math.fsum(self.blocks)
        return self.head * len(self.blocks) / body if body else 1.0

    def resumed(self, start: int) -> float:
        """Cost of a forward from block ``start`` to the loss; -1 for all of it."""
        return math.fsum(self.blocks[max(start, 0) :]) + self.head


def forward_cost(layers: Mapping[str, Layer], blocks: int, config: Any) -> ForwardCost:
    """The cost of a model's forward by its layers.

    Args:
        layers: of the model, by name.
        blocks: how many blocks it has.
        config: the model's, as transformers has it.
    """
    routed = experts_per_token(config)
    costs = [0.0] * blocks
    head = 0.0
    for layer in layers.values():
        size = math.prod(layer.shape)
        if layer.role == "head":
            head += LOGITS * size
        elif layer.block is not None:
            share = min(1.0, routed / layer.shape[0]) if layer.role == "experts" else 1.0
            for block in layer.uses if layer.repeated else (layer.block,):
                costs[block] += share * size
    return ForwardCost(tuple(costs), head)


def cost_of(network: Network) -> ForwardCost:
    """The cost of a network's forward."""
    return forward_cost(network.layers, len(network.blocks), network.config)


def experts_per_token(config: Any) -> int:
    """How many experts a token is routed to; 1 if the config does not say."""
    text = config.get_text_config()
    for part in (text, getattr(text, "ffn_config", None)):
        for name in EXPERTS_PER_TOKEN:
            found = getattr(part, name, None)
            if isinstance(found, int) and found > 0:
                return found
    return 1
