"""What is given back at once: layers, modules of a block, blocks; and sets of them to cure with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from engine import protocol as p
from engine.model.blocks import find_blocks
from engine.model.network import Network
from engine.session import order_of_wins

MANY = 48
"""Layers from which blocks are restored first, then what is inside of those that win most."""
BLOCKS = 3
"""Blocks whose modules and layers are restored, where blocks came first."""
LAYERS = (1, 2, 4, 8)
"""How many of the layers that win most are given back together."""
LEAST = 0.01
"""Share of KL that a layer, module or block must win to be given back for a cure."""
MODULES = (1, 2, 4)
"""How many of the modules that win most are given back together."""


@dataclass(frozen=True)
class Unit:
    """What is given back at once."""

    name: str
    """Of the layer; or ``block 3``, ``block 3 self_attn``."""
    layers: tuple[str, ...]
    by: p.RestoredBy


def units_first(network: Network, recipe: Mapping[str, str]) -> list[Unit]:
    """What is restored first: every layer and module, or of many layers blocks and those outside.

    Of a block with one layer that layer, which can then be given back with those of other blocks.

    Args:
        network: whose layers they are.
        recipe: its layers are those that are not kept.
    """
    if len(recipe) <= MANY:
        return [*_single(recipe), *_modules(network, recipe)]
    blocks: dict[int | None, list[str]] = {}
    for name in recipe:
        blocks.setdefault(network.layers[name].block, []).append(name)
    found = _single(blocks.pop(None, []))
    for at, names in blocks.items():
        alone = len(names) == 1
        found += _single(names) if alone else [Unit(f"block {at}", tuple(names), "block")]
    return found


def units_within(network: Network, found: Sequence[tuple[Unit, p.SymptomRestored]]) -> list[Unit]:
    """The modules and layers of the blocks that win most."""
    blocks = [(unit, fact) for unit, fact in found if unit.by == "block"]
    blocks.sort(key=lambda each: -each[1].kl)
    names = [name for unit, _ in blocks[:BLOCKS] for name in unit.layers]
    return [*_single(names), *_modules(network, names)]


def _single(names: Iterable[str]) -> list[Unit]:
    return [Unit(name, (name,), "layer") for name in names]


def _modules(network: Network, names: Iterable[str]) -> list[Unit]:
    """Direct children of blocks with several of these layers, as attention and MLP.

    Layers that are children themselves, as the MLP of OPT, are one unit.
    """
    blocks = find_blocks(network.model)[0]
    modules: dict[tuple[int, str], list[str]] = {}
    for name in names:
        layer = network.layers[name]
        if layer.block is not None:
            inside = layer.module.split(f"{blocks}.{layer.block}.", 1)[-1].split(".")
            child = inside[0] if len(inside) > 1 else ""
            modules.setdefault((layer.block, child), []).append(name)
    found = []
    for (block, child), layers in modules.items():
        if len(layers) > 1:
            child = child or "+".join(network.layers[name].kind for name in layers)
            found.append(Unit(f"block {block} {child}", tuple(layers), "module"))
    return found


def sets_to_try(network: Network, found: Sequence[p.SymptomRestored]) -> list[tuple[str, ...]]:
    """Layers to give back together until the symptom is gone: the fewest weights first.

    The layers that win most, the modules that win most, and the best block: layers that spoil each
    other's work win little one by one. What wins next to nothing is left out, unless all does.

    Args:
        network: whose layers they are.
        found: everything that was given back.
    """
    positive = [fact for fact in order_of_wins(found) if fact.kl > 0]
    ranked = [fact for fact in positive if fact.kl >= LEAST * fact.whole] or positive
    layers = [fact for fact in ranked if fact.by == "layer"]
    modules = [fact for fact in ranked if fact.by == "module"]
    blocks = [fact for fact in ranked if fact.by == "block"]
    sets = [layers[:count] for count in LAYERS]
    sets += [modules[:count] for count in MODULES]
    sets.append(blocks[:1])
    wins = {fact.unit: fact.kl for fact in layers}

    def ordered(some: Sequence[p.SymptomRestored]) -> tuple[str, ...]:
        names = {name for fact in some for name in fact.layers}
        return tuple(sorted(names, key=lambda name: (-wins.get(name, 0.0), name)))

    def weights(names: tuple[str, ...]) -> int:
        return sum(prod(network.layers[name].shape) for name in names)

    different = dict.fromkeys(ordered(some) for some in sets if some)
    return sorted(different, key=weights)
