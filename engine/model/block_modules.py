"""The modules of a block that hold its layers: attention, MLP, a mixture with its router."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from engine.model.blocks import find_blocks
from engine.model.network import Network


class BlockModule(NamedTuple):
    """A module that is a direct child of a block."""

    name: str
    """In the model."""
    module: nn.Module
    last: str
    """Its last layer, in the model's order."""


def block_modules(network: Network) -> list[BlockModule]:
    """Children of blocks with layers inside of them; a child that is a layer itself is none."""
    names = {module: name for name, module in network.model.named_modules()}
    layers_of: dict[nn.Module, list[str]] = {}
    for name in network.layers:
        for slot in network.slots(name):
            layers_of.setdefault(slot.owner, []).append(name)
    order = {name: at for at, name in enumerate(network.layers)}
    found = []
    for block in find_blocks(network.model)[1]:
        for child in block.children():
            if child in layers_of:
                continue
            inside = [name for each in child.modules() for name in layers_of.get(each, ())]
            if inside:
                last = max(inside, key=order.__getitem__)
                found.append(BlockModule(names[child], child, last))
    return found
