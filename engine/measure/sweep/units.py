"""Units: what a sweep changes at once: a layer, or a whole block, kind or fused group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine import protocol as p
from engine.checkpoint import fused_groups
from engine.model.layers import Layer


@dataclass(frozen=True)
class Unit:
    """Layers that are changed together."""

    name: str
    """A layer's name, a block's number, a kind, or the first layer of a fused group."""
    layers: tuple[str, ...]
    """In the model's order."""
    start: int
    """The first block that a change affects; see `Layer.start`."""
    body: bool
    """Whether none of them is the embedding or the head."""


def units(layers: Mapping[str, Layer], by: p.By) -> list[Unit]:
    """All units of a model, in the order of its layers.

    A layer in no group is a unit of its own. Layers outside of blocks (embedding, head) belong to
    no block; they have kinds of their own.
    """
    numbers = fused_groups(
        list(layers),
        [-1 if layer.block is None else layer.block for layer in layers.values()],
        [layer.role for layer in layers.values()],
    )
    members: dict[str, list[Layer]] = {}
    first: dict[int, str] = {}
    for layer, group in zip(layers.values(), numbers, strict=True):
        name = layer.name
        if by == "block":
            if layer.block is None:
                continue
            name = str(layer.block)
        elif by == "kind":
            name = layer.kind
        elif by == "group" and group >= 0:
            name = first.setdefault(group, layer.name)
        members.setdefault(name, []).append(layer)
    return [
        Unit(
            name,
            tuple(layer.name for layer in together),
            min(layer.start for layer in together),
            not any(layer.role in ("embedding", "head") for layer in together),
        )
        for name, together in members.items()
    ]
