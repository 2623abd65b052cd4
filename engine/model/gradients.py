"""Inputs and output gradients of every layer in one region of a network.

A region is the head, one block, or what lies before the first block. It is run alone from the
hidden state before it, with a graph, and gone through backwards once for each cotangent of its
output: a whole backward pass goes over the regions from the head on, with one region's graph
in memory. Parameters take no part in the graph; only what layers give does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from engine.model.blocks import Forward, Reached, hidden_of, split_output
from engine.model.inputs import takes_no_product
from engine.model.network import Held, Network
from engine.model.processor import has_matrix_units


@dataclass(frozen=True, eq=False)
class Tap:
    """Inputs of one call of a layer, and the gradients of its outputs."""

    layer: str
    inputs: Tensor
    """``[windows, tokens, in]``; token ids ``[windows, tokens]`` for an embedding."""
    gradients: tuple[Tensor, ...]
    """``∂loss/∂output``, ``[windows, tokens, out]``, one for each cotangent."""


@dataclass(frozen=True, eq=False)
class WeightTap:
    """Gradients of a weight that is not one matrix product (experts), of one window."""

    layer: str
    gradients: tuple[Tensor, ...]
    """``∂loss/∂W`` oriented as :attr:`Layer.shape`, one for each cotangent."""


Taps = list[Tap | WeightTap]


def layers_of(network: Network, region: int) -> list[str]:
    """Layers that act in a region: a block, ``n_blocks`` for what follows them, -1 for the rest."""
    return [name for name, layer in network.layers.items() if region in layer.uses]


def needs_single_windows(network: Network, region: int) -> bool:
    """Whether a region's gradients are told apart by windows only if it is given one at a time."""
    return any(takes_no_product(network, name) for name in layers_of(network, region))


def block_gradients(
    network: Network,
    ids: Tensor,
    block: int,
    state: Tensor,
    cotangents: Sequence[Tensor],
    held: Mapping[str, Held],
    watched: Sequence[str],
) -> tuple[Taps, list[Tensor]]:
    """Go through one block forwards and backwards.

    Args:
        network: resumable, at rest.
        ids: ``[windows, tokens]``.
        block: its number.
        state: its input, ``[windows, tokens, hidden]``.
        cotangents: of its output, each of the shape of ``state``.
        held: weights the network holds meanwhile.
        watched: layers to tap.

    Returns:
        The taps, and the cotangents of ``state``.

    Raises:
        Preempted: ``should_stop`` said so.
    """
    leaf = state.detach().requires_grad_(True)
    reached: list[Tensor] = []
    with (
        network.at_hand([block]),  # backwards too
        network.holding(held),
        _watching(network, watched) as calls,
    ):
        forwards = network.resuming(block, leaf)
        forwards[block] = _with_graph(forwards[block], reached)
        # What is made before the blocks may be given to this one beside its input.
        before = any(network.layers[name].block is None for name in watched)
        network.run_until_reached(ids, forwards, grad=before)
        return _backwards(network, reached[0], leaf, cotangents, calls, watched, ids.shape)


def opening_gradients(
    network: Network,
    ids: Tensor,
    cotangents: Sequence[Tensor],
    held: Mapping[str, Held],
    watched: Sequence[str],
) -> Taps:
    """Go through what lies before the first block: the embedding, and projections after it.

    Args:
        cotangents: of the first block's input.
        network, ids, held, watched: as of `block_gradients`.
    """
    reached: list[Tensor] = []

    def first(*args: Any, **kwargs: Any) -> Any:
        reached.append(hidden_of(args, kwargs))
        raise Reached

    with network.holding(held), _watching(network, watched) as calls:
        forwards = network.resuming(0, None)
        forwards[0] = first
        network.run_until_reached(ids, forwards, grad=True)
        if not reached[0].requires_grad:
            return []
        return _backwards(network, reached[0], None, cotangents, calls, watched, ids.shape)[0]


def head_gradients(
    network: Network,
    ids: Tensor,
    state: Tensor,
    positions: tuple[int, int],
    losses: Callable[[Tensor], Sequence[Tensor]],
    held: Mapping[str, Held],
    watched: Sequence[str],
) -> tuple[Taps, list[Tensor]]:
    """Go through norm and head forwards and backwards at some positions.

    Args:
        state: the last block's output, ``[windows, tokens, hidden]``.
        positions: from the first to before the last.
        losses: of the logits ``[windows, positions, vocabulary]``, without a graph, the cotangents
            of them.
        network, ids, held, watched: as of `block_gradients`.

    Returns:
        The taps, and the cotangents of ``state``: zero at other positions.
    """
    leaf = state.detach().requires_grad_(True)
    with network.holding(held), _watching(network, watched) as calls:
        logits = network.logits(ids, leaf, positions, grad=True)
        with torch.no_grad():
            cotangents = losses(logits.detach())
        found, before = _backwards(network, logits, leaf, cotangents, calls, watched, ids.shape)
        return [_at(tap, positions, ids.shape[1]) for tap in found], before


def whole_gradients(
    network: Network,
    ids: Tensor,
    positions: tuple[int, int],
    losses: Callable[[Tensor], Sequence[Tensor]],
    held: Mapping[str, Held],
    watched: Sequence[str],
) -> Taps:
    """Go through the whole network forwards and backwards, its graph in memory all at once.

    For networks that cannot be resumed: there all blocks are needed at once. The arguments are
    those of `head_gradients`.
    """
    a, b = positions
    embedding = [n for n, layer in network.layers.items() if layer.role == "embedding"]
    rooted = [*watched, *(name for name in embedding if name not in watched)]
    with (
        network.at_hand(range(len(network.blocks))),
        network.holding(held),
        _watching(network, rooted) as calls,
    ):
        logits = network.run(ids, network.resuming(0, None), grad=True)[:, a:b]
        with torch.no_grad():
            cotangents = losses(logits.detach())
        return _backwards(network, logits, None, cotangents, calls, watched, ids.shape)[0]


def _at(tap: Tap | WeightTap, positions: tuple[int, int], tokens: int) -> Tap | WeightTap:
    """A tap after the blocks at some positions, also of a layer that was given all of them."""
    a, b = positions
    if isinstance(tap, WeightTap) or tap.inputs.shape[1] != tokens:
        return tap
    return Tap(tap.layer, tap.inputs[:, a:b], tuple(g[:, a:b] for g in tap.gradients))


class _Product(torch.autograd.Function):
    """``x Wᵀ`` and its gradient of ``x``, both multiplied in bfloat16."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, cast: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(torch.bfloat16)
        context.save_for_backward(weight)
        return functional.linear(cast, weight).to(inputs.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        return (gradient.to(torch.bfloat16) @ weight).to(gradient.dtype), None, None


class _Products(TorchFunctionMode):
    """Multiplies float32 by float32 matrices in bfloat16, where there are matrix units for it.

    Not all that autocast casts: its attention goes backwards slower in bfloat16 than in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and not kwargs and _castable(args[0], args[1]):
            found = self._product(args[0], args[1])
            return found if len(args) < 3 or args[2] is None else found + args[2]
        if func is torch.addmm and not kwargs and _castable(args[1], args[2]):
            return self._product(args[1], args[2].T) + args[0]
        return func(*args, **kwargs)

    def _product(self, inputs: Tensor, weight: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not inputs:
            self._last = inputs, inputs.detach().to(torch.bfloat16)  # layers may share an input
        found: Tensor = _Product.apply(inputs, self._last[1], weight)  # type: ignore[no-untyped-call]
        return found


def _castable(inputs: Tensor, weight: Tensor) -> bool:
    return (
        has_matrix_units()
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == "cpu"
        and not weight.requires_grad
    )


def _with_graph(forward: Forward, reached: list[Tensor]) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad(), _Products():
            reached.append(split_output(forward(*args, **kwargs))[0])
        raise Reached

    return run


Calls = dict[str, list[tuple[Tensor, Tensor | GradientEdge]]]


@contextmanager
def _watching(network: Network, watched: Sequence[str]) -> Iterator[Calls]:
    """What the watched layers are given and give, as a graph sees it, in order of the calls."""
    calls: Calls = defaultdict(list)
    hooks: list[Any] = []
    freed: list[Tensor] = []

    def watching(module: nn.Module, name: str) -> None:
        given: list[Tensor] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            given.append(args[0].detach())

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            inputs = given.pop()
            if not torch.is_grad_enabled():
                return
            if not output.requires_grad:
                output.requires_grad_(True)  # an embedding: nothing before it has a graph
            # Of the output as it is now: what follows may write into it.
            calls[name].append((inputs, get_gradient_edge(output)))

        # Inputs as they come, before anything that is held changes them.
        hooks.append(module.register_forward_pre_hook(before, prepend=True))
        hooks.append(module.register_forward_hook(after))

    try:
        for name in watched:
            if takes_no_product(network, name):
                parameter = network.slot(name).parameter.requires_grad_(True)
                freed.append(parameter)
                calls[name].append((parameter, parameter))
            else:
                for slot in network.slots(name):
                    watching(slot.owner, name)
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in freed:
            parameter.requires_grad_(False)


def _backwards(
    network: Network,
    output: Tensor,
    leaf: Tensor | None,
    cotangents: Sequence[Tensor],
    calls: Calls,
    watched: Sequence[str],
    shape: torch.Size,
) -> tuple[Taps, list[Tensor]]:
    flat = [(name, given, gave) for name in watched for given, gave in calls.get(name, ())]
    wanted: list[Any] = [gave for _, _, gave in flat] + ([leaf] if leaf is not None else [])
    found: list[tuple[Tensor | None, ...]] = []
    for number, cotangent in enumerate(cotangents):
        more = number + 1 < len(cotangents)
        found.append(
            torch.autograd.grad(
                output, wanted, cotangent.to(output.dtype), retain_graph=more, allow_unused=True
            )
        )
    taps: Taps = []
    for at, (name, given, _gave) in enumerate(flat):
        gradients = [each[at] for each in found]
        if any(each is None for each in gradients):
            continue  # it has no part in the output
        if takes_no_product(network, name):
            slot = network.slot(name)
            taps.append(
                WeightTap(name, tuple(slot.oriented(g) for g in gradients if g is not None))
            )
            continue
        taps.append(_by_token(name, given, [g for g in gradients if g is not None], shape[0]))
    if leaf is None:
        return taps, []
    return taps, [
        torch.zeros_like(leaf) if (last := each[-1]) is None else last.detach() for each in found
    ]


def _by_token(name: str, given: Tensor, gradients: Sequence[Tensor], windows: int) -> Tap:
    """A tap ``[windows, tokens, …]``: some layers are given all tokens of all windows in a row."""
    if given.is_floating_point():
        given = given.reshape(windows, -1, given.shape[-1])
    return Tap(name, given, tuple(g.reshape(windows, -1, g.shape[-1]) for g in gradients))
