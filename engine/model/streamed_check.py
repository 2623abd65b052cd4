"""What is checked when a model with streamed blocks is opened: the same as of a resident one, in
two passes over its blocks.

The first pass runs a few tokens, notes what enters and leaves each block, and where layers act. The
second runs other tokens, and within each block the first ones again, alone, the earlier blocks
skipped: whatever these left behind is of another text by then. If that gives what the first pass
gave, for every block, a forward resumed at any block equals the whole one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import is_out_of_memory
from engine.model.blocks import Forward, hidden_of, join_output, split_output, with_hidden
from engine.model.network import Network
from engine.model.selfcheck import (
    CANNOT_RUN,
    Findings,
    chunk_is_right,
    head_is_alone,
    lasting,
    note,
    other_tokens,
    refuse_not_finite,
    refuse_unless_causal,
    refuse_written,
    same,
    some_ids,
)
from engine.model.streaming import CannotStream
from engine.model.torch_internals import leaves_of, version_of
from engine.model.uses import with_graph


@dataclass
class _First:
    """The first pass."""

    states: list[Tensor] = field(default_factory=list)
    """The input of every block, and the last one's output."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    uses: dict[str, set[int]] = field(default_factory=dict)
    """Regions by layer."""
    floor: float = 0.0
    """The largest difference of running the same twice, where a device does not repeat itself."""


def check_streamed(network: Network) -> None:
    """Check that blocks can be run one by one, and note where layers act.

    Raises:
        CannotStream: they cannot, or it does not show where a layer acts.
        EngineError: the model's logits are not finite.
        CheckpointError: it writes into its own weights, or is not causal.
    """
    network.resumable = network.head_resumable = False
    ids = some_ids(network)
    try:
        first = _first_pass(network, ids)
        _second_pass(network, ids, first)
    except CANNOT_RUN as error:
        if is_out_of_memory(error):
            raise
        raise CannotStream(f"its blocks do not run one by one ({error})") from error
    n = len(network.blocks)
    head = head_is_alone(network, ids, first.states[n], first.logits, first.floor)
    if not head:
        raise CannotStream("the head depends on more than the output of the last block")
    chunks = network.takes_positions and chunk_is_right(
        network, ids, first.states[n], first.logits, first.floor
    )
    hidden = [name for name, regions in first.uses.items() if not regions]
    if hidden:
        raise CannotStream(f"a few tokens do not show where {hidden[0]} acts")
    for name, regions in first.uses.items():
        network.layers[name] = replace(network.layers[name], uses=tuple(sorted(regions)))
    network.without_effect = ()
    note(network, Findings(None, head, chunks))


def _first_pass(network: Network, ids: Tensor) -> _First:
    n, own = len(network.blocks), network.resuming(0, None)
    first = _First(uses={name: set() for name in network.layers})
    region = -1

    def leave(output: Tensor, into: int) -> None:
        nonlocal region
        for parameter in leaves_of(output):
            if (name := names.get(id(parameter))) is not None:
                first.uses[name].add(region)
        region = into

    def recording(i: int) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if i != len(first.states):
                raise CannotStream("its blocks do not run once each, one after the other")
            hidden = hidden_of(args, kwargs)
            leave(hidden, i)
            hidden = hidden.detach()
            args, kwargs = with_hidden(args, kwargs, hidden)
            before = version_of(hidden)
            with network.at_hand([i]):
                versions = [version_of(p) for p in network.blocks.modules[i].parameters()]
                leave(split_output(own[i](*args, **kwargs))[0], i + 1)
                with torch.no_grad():
                    output = own[i](*args, **kwargs)
                    state, beside = split_output(output)
                    if network.device.type != "cpu":
                        again = split_output(own[i](*args, **kwargs))[0]
                        first.floor = max(first.floor, float((again - state).abs().max()))
                refuse_written(network, network.blocks.modules[i], versions)
            if version_of(hidden) != before:
                raise CannotStream(f"the input of block {i} is written to after it was read")
            first.states.append(hidden)
            network.beside[i] = beside and tuple(lasting(one) for one in beside)
            if i == n - 1:
                first.states.append(state)
            return join_output(state, beside)

        return forward

    with with_graph(network) as names:
        logits = network.run(ids, [recording(i) for i in range(n)], grad=True)
        leave(logits, -1)
    first.logits = logits.detach()
    refuse_not_finite(network, first.logits)
    if len(first.states) != n + 1:
        raise CannotStream("its blocks do not run once each, one after the other")
    network.state_size = max(state.numel() for state in first.states) // ids.numel()
    if network.device.type != "cpu":
        with torch.no_grad():
            again = network.run(ids, network.resuming(n, first.states[n]))
        first.floor = max(first.floor, float((again - first.logits).abs().max()))
    return first


def _second_pass(network: Network, ids: Tensor, first: _First) -> None:
    n, own = len(network.blocks), network.resuming(0, None)
    # Made now: the blocks' own forwards are replaced inside.
    alone = [network.resuming(k, first.states[k]) for k in range(n)]

    def checking(i: int) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with network.at_hand([i]):
                try:
                    output = network.output_of(ids, i, alone[i])
                except CANNOT_RUN as error:
                    if is_out_of_memory(error):
                        raise
                    raise CannotStream(
                        f"block {i} cannot run without the blocks before it"
                    ) from error
                if not same(output, first.states[i + 1], first.floor):
                    raise CannotStream(f"block {i} depends on more than its input")
                return own[i](*args, **kwargs)

        return forward

    other, kept = other_tokens(network, ids)
    logits = network.run(other, [checking(i) for i in range(n)])
    refuse_unless_causal(network, logits, first.logits, kept, first.floor)
