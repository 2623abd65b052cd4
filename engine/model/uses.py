"""Where each layer acts, found by running the model once on a few tokens.

A *region* is what lies before the first block (-1), a block, or what follows the last one. A layer
acts in a region if what leaves it depends on the layer's weight while what enters it is given: a
projection after the blocks acts there; a weight that several blocks share, in each of them; one
that makes an input which every block is given beside the hidden state, in every block, though it
is computed before all of them. A change is measured from the first region it acts in, and has to be
held in all of them.

Each block is given its input cut off from what made it, with a graph of everything else: the
weights at the graph's leaves are those that act. Nothing is multiplied backwards, so this costs one
forward. Where a graph shows nothing (a model may compute without one), the weight is changed and
what comes of it is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import is_out_of_memory
from engine.model.blocks import Forward, hidden_of, join_output, split_output, with_hidden
from engine.model.network import Network
from engine.model.torch_internals import leaves_of

LAST = 16
"""Positions at a window's end whose logits are compared."""
Uses = dict[str, set[int]]
"""Regions by layer."""


def find_uses(network: Network, ids: Tensor, cannot_run: tuple[type[Exception], ...]) -> None:
    """Write into ``network.layers`` where each layer acts; name those that act nowhere.

    Args:
        network: at rest.
        ids: a few tokens, ``[1, tokens]``.
        cannot_run: errors of a model that cannot be run with a graph.
    """
    names = list(network.layers)
    uses: Uses = {name: set() for name in names}
    try:
        _follow(network, ids, uses)
    except cannot_run as error:
        if is_out_of_memory(error):
            raise
        uses = {name: set() for name in names}
    missing = [name for name, regions in uses.items() if not regions]
    if missing:
        before = _states(network, ids)
        for name in missing:
            uses[name] = _by_change(network, ids, name, before)
    network.without_effect = tuple(name for name, regions in uses.items() if not regions)
    everywhere = range(-1, len(network.blocks) + 1)
    for name, regions in uses.items():
        layer = network.layers[name]
        if not regions and layer.block is None:
            regions.update(everywhere)  # it may act on longer texts
        if regions:
            network.layers[name] = replace(layer, uses=tuple(sorted(regions)))


def _follow(network: Network, ids: Tensor, uses: Uses) -> None:
    """Note the leaves of each region's graph."""
    end, own = len(network.blocks), network.resuming(0, None)
    region = -1

    def leave(output: Tensor, into: int) -> None:
        nonlocal region
        for parameter in leaves_of(output):
            if (name := names.get(id(parameter))) is not None:
                uses[name].add(region)
        region = into

    def following(i: int) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = hidden_of(args, kwargs)
            leave(hidden, i)
            args, kwargs = with_hidden(args, kwargs, hidden.detach())
            output = own[i](*args, **kwargs)
            if i + 1 < end:
                return output
            state, beside = split_output(output)
            leave(state, end)
            return join_output(state.detach(), beside)

        return forward

    with with_graph(network) as names:
        logits = network.run(ids, [following(i) for i in range(end)], grad=True)
        leave(logits, -1)


@contextmanager
def with_graph(network: Network) -> Iterator[dict[int, str]]:
    """Inside, layers' weights are leaves of graphs; their names by the id of the parameter."""
    parameters = {name: network.slot(name).parameter for name in network.layers}
    wanted = {name: p for name, p in parameters.items() if p.is_floating_point()}
    try:
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        yield {id(parameter): name for name, parameter in wanted.items()}
    finally:
        for parameter in wanted.values():
            parameter.requires_grad_(False)


def _by_change(network: Network, ids: Tensor, name: str, before: list[Tensor]) -> set[int]:
    """From the first region where another weight makes a difference on; none if it makes none."""
    with network.holding({name: _other(network, name)}):
        after = _states(network, ids)
    pairs = zip(before, after, strict=True)
    first = next((i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)), None)
    return set() if first is None else set(range(first - 1, len(network.blocks) + 1))


def _other(network: Network, name: str) -> Tensor:
    """A weight of the same size as a layer's."""
    with network.at_hand([network.layers[name].start]):
        weight = network.weight(name)
    generator = torch.Generator().manual_seed(0)
    scale = float(weight.abs().mean()) or 1.0
    return torch.randn(weight.shape, generator=generator, dtype=torch.float32) * scale


def unused(network: Network, ids: Tensor) -> tuple[str, ...]:
    """Of the layers that a few tokens do not need, those that this text does not need either.

    Some act on long texts alone, such as one that chooses which tokens to attend to. All are
    changed together: none are returned if the logits change.

    Args:
        network: at rest.
        ids: a window, ``[1, tokens]``.
    """
    names, tokens = network.without_effect, ids.shape[1]
    if not names:
        return ()

    def outputs() -> tuple[Tensor, Tensor]:
        state = network.final_state(ids, -1, None)
        return state, network.logits(ids, state, (max(0, tokens - LAST), tokens))

    before = outputs()
    with network.holding({name: _other(network, name) for name in names}):
        after = outputs()
    return names if all(map(torch.equal, before, after)) else ()


def _states(network: Network, ids: Tensor) -> list[Tensor]:
    """The first input of every block, the last output of the last one, and the logits."""
    end, own = len(network.blocks), network.resuming(0, None)
    states: dict[int, Tensor] = {}

    def recording(i: int) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states.setdefault(i, hidden_of(args, kwargs).clone())
            output = own[i](*args, **kwargs)
            if i + 1 == end:
                states[end] = split_output(output)[0].clone()
            return output

        return forward

    logits = network.run(ids, [recording(i) for i in range(end)])
    return [*(states[i] for i in sorted(states)), logits]
