"""Watches the inputs of the layers of one block while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.model.block_modules import BlockModule, block_modules
from engine.model.blocks import Forward, Reached, patched
from engine.model.experts import forward_by_expert, why_fused
from engine.model.layers import Layer
from engine.model.network import Held, Network
from engine.model.selfcheck import some_ids
from engine.model.torch_internals import version_of

Take = Callable[[str, int | None, Tensor], None]
"""Called with a layer, its expert (None: it has none) and inputs ``[tokens, in]``."""
Call = Callable[[str, Tensor], None]
TakeModule = Callable[[str, Tensor | None], None]


class _Seen(NamedTuple):
    shared: dict[str, tuple[str, ...]]
    uncalled: frozenset[str]
    grouped: frozenset[str]


_seen: WeakKeyDictionary[Network, _Seen] = WeakKeyDictionary()


def watch_inputs(
    network: Network,
    ids: Tensor,
    block: int,
    state: Tensor | None,
    take: Take,
    held: Mapping[str, Held] = {},
    names: list[str] | None = None,
) -> Tensor | None:
    """Run block ``block`` alone, and pass the inputs of its layers to ``take``.

    A call that was preempted has given nothing to ``take``. Inputs are the model's own tensors or
    views of them, before what a `StandIn` does to them: not to be written, not to be kept.

    Args:
        ids: ``[batch, tokens]``.
        block: its index; ``n_blocks`` is the head, -1 what stands outside of blocks and is neither
            head nor embedding, for which the whole forward is run up to the head.
        state: the input of the block. None runs the model up to it, and so does any state of a
            model that is not resumable.
        take: called whenever a layer is; for experts once an expert that is given tokens, with
            those. Not for layers with a reason in :func:`why_unseen`.
        held: what layers compute with meanwhile; other than nothing only where nothing is held.
        names: the layers to watch; all of :func:`watched_layers` if not given.

    Returns:
        The block's output; None for -1 and the head.

    Raises:
        Preempted: ``should_stop`` said so.
    """
    n = len(network.blocks)
    names = watched_layers(network, block) if names is None else names
    with ExitStack() as stack:
        if held:
            stack.enter_context(network.holding(held))
        if 0 <= block < n and all(network.layers[name].block is not None for name in names):
            stack.enter_context(watching(network, names, take))
            return _run_block(network, ids, block, state)
        network.stop_if_asked()
        kept: list[tuple[str, int | None, Tensor]] = []

        def keep(layer: str, expert: int | None, inputs: Tensor) -> None:
            kept.append((layer, expert, inputs.clone()))  # what runs after may write into it

        stack.enter_context(watching(network, names, keep))
        output = None
        if 0 <= block < n:
            output = _run_block(network, ids, block, state)
        else:
            resumed = block == n and state is not None and network.head_resumable
            _run_to_head(network, ids, network.resuming(n, state) if resumed else None)
    with torch.no_grad():
        for one in kept:  # only now: the forward may have been preempted between two layers
            take(*one)
    return output


def watch_all(
    network: Network,
    ids: Tensor,
    take: Take,
    take_output: Call,
    take_module: TakeModule | None = None,
) -> None:
    """Run the model up to its head, and pass what every layer is given and returns.

    Args:
        ids: ``[batch, tokens]``.
        take: called with the inputs of a layer, as by :func:`watch_inputs`.
        take_output: called with a layer and its output; not for experts, nor for the head, whose
            product is not made.
        take_module: called with an attention or MLP module of a block and what it returns; None
            where that is the very output of its last layer.

    Raises:
        Preempted: ``should_stop`` said so; some layers have been passed already.
    """
    regions = range(-1, len(network.blocks) + 1)
    with watching_all(network, regions, take, take_output, take_module):
        run_to_head(network, ids, None)


@contextmanager
def watching_all(
    network: Network,
    regions: range,
    take: Take,
    take_output: Call,
    take_module: TakeModule | None = None,
) -> Iterator[None]:
    """Inside, forwards pass what the layers of some regions are given and return.

    Args:
        regions: -1 is what lies before the blocks, their number what follows them.
        network, take, take_output, take_module: as of :func:`watch_all`.
    """
    names = [
        name
        for name, layer in network.layers.items()
        if layer.role != "embedding"
        and layer.acts_in(regions)
        and _why_fused(network, name) is None
    ]
    with (
        watching(network, names, take),
        _watching_outputs(network, names, take_output, take_module),
        torch.no_grad(),
    ):
        yield


@torch.no_grad()
def run_to_head(network: Network, ids: Tensor, state: Tensor | None) -> None:
    """Run the model until its head is called; from the last block's output, if it is given.

    Raises:
        Preempted: ``should_stop`` said so.
    """
    forwards = None if state is None else network.resuming(len(network.blocks), state)
    _run_to_head(network, ids, forwards)


@contextmanager
def _watching_outputs(
    network: Network, names: list[str], take: Call, take_module: TakeModule | None
) -> Iterator[None]:
    """Inside, forwards give the outputs of these layers to ``take``, and those of modules."""
    modules = block_modules(network) if take_module is not None else []
    lasts = {module.last for module in modules}
    returned: dict[str, Tensor] = {}
    """Outputs of the last layers of modules that have not returned yet."""

    def giving(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            take(name, output)
            if name in lasts:
                returned[name] = output

        return hook

    def returning(found: BlockModule) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            last = returned.pop(found.last, None)
            same = last is not None and where(last) == where(output)
            assert take_module is not None
            take_module(found.name, None if same else output)

        return hook

    hooks = [
        slot.owner.register_forward_hook(giving(name))
        for name in names
        if network.layers[name].role != "experts"
        for slot in network.slots(name)
    ]
    hooks += [each.module.register_forward_hook(returning(each)) for each in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def watched_layers(network: Network, block: int) -> list[str]:
    """The layers whose inputs :func:`watch_inputs` provides for this block."""
    return [
        name
        for name, layer in network.layers.items()
        if layer.start == block and layer.role != "embedding" and _why_fused(network, name) is None
    ]


def why_unseen(network: Network, layer: str) -> str | None:
    """Why a layer's inputs cannot be watched or changed; None if they can."""
    if network.layers[layer].role == "embedding":
        return f"{layer} is given tokens, not a hidden state"
    if why := _why_fused(network, layer):
        return why
    if layer in _see(network).uncalled:
        return f"{layer} is never called: the model computes with its weight alone"
    if layer in _see(network).grouped:
        return f"{layer} multiplies each group of its inputs by other rows of its weight"
    return None


def takes_no_product(network: Network, layer: str) -> bool:
    """Whether a layer's output is not its input times its whole weight: ``y ≠ x Wᵀ``.

    Experts, grouped linear layers, and modules whose weight is used without calling them.
    """
    seen = _see(network)
    experts = network.layers[layer].role == "experts"
    return experts or layer in seen.uncalled or layer in seen.grouped


def why_not_gathered(network: Network, layer: str) -> str | None:
    """Why a layer has no one set of inputs to calibrate on; None if it has."""
    found = network.layers[layer]
    if not found.repeated:
        return None
    blocks = [str(block) for block in found.uses]
    return f"{layer} acts in blocks {', '.join(blocks[:-1])} and {blocks[-1]} with inputs of each"


def why_not_gathered_of(network: Network) -> dict[str, str]:
    """`why_not_gathered` of the layers for which there is a reason."""
    each = {layer: why_not_gathered(network, layer) for layer in network.layers}
    return {layer: why for layer, why in each.items() if why is not None}


def shared_inputs(network: Network) -> dict[str, tuple[str, ...]]:
    """For every layer but the embedding, all layers with the very same input tensor.

    Itself included, in the model's order. Told by running a few tokens and comparing where tensors
    lie in memory, views counting as the same. Experts see their own tokens only, and share with
    the tensors of the same experts at most. Found once a network.
    """
    return _see(network).shared


def _why_fused(network: Network, layer: str) -> str | None:
    if network.layers[layer].role != "experts":
        return None
    why = why_fused(network.slot(layer).owner)
    return why and f"{layer}: {why}"


def _see(network: Network) -> _Seen:
    if network not in _seen:
        _seen[network] = _run_once(network)
    return _seen[network]


def _run_once(network: Network) -> _Seen:
    kept: list[Tensor] = []  # alive until the end: another tensor would take its place in memory
    readers: dict[object, list[str]] = {}

    def take(layer: str, expert: int | None, inputs: Tensor) -> None:
        kept.append(inputs)
        key = (expert is None, *where(inputs))
        if layer not in readers.setdefault(key, []):
            readers[key].append(layer)

    layers = [name for name, layer in network.layers.items() if layer.role != "embedding"]
    # One that acts in several blocks shares its input with others in some of them only.
    seen = [n for n in layers if _why_fused(network, n) is None and not network.layers[n].repeated]
    with watching(network, seen, take), _noting_outputs(network, seen) as grouped:
        network.run(some_ids(network), None)
    order = {name: i for i, name in enumerate(layers)}
    shared: dict[str, tuple[str, ...]] = {}
    uncalled: set[str] = set()
    for name in layers:
        calls = [group for group in readers.values() if name in group]
        if not calls and name in seen:
            uncalled.add(name)
        together = set(calls[0]).intersection(*calls[1:]) if calls else {name}
        shared[name] = tuple(sorted(together, key=order.__getitem__))
    return _Seen(shared, frozenset(uncalled), frozenset(grouped))


@contextmanager
def _noting_outputs(network: Network, names: list[str]) -> Iterator[set[str]]:
    """Inside, notes layers whose outputs have not one channel for each row of the weight."""
    grouped: set[str] = set()

    def noting(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if output.shape[-1] != network.layers[name].shape[-2]:
                grouped.add(name)

        return hook

    slots = [(n, network.slot(n)) for n in names if network.layers[n].role != "experts"]
    hooks = [slot.owner.register_forward_hook(noting(name)) for name, slot in slots]
    try:
        yield grouped
    finally:
        for hook in hooks:
            hook.remove()


def where(tensor: Tensor) -> tuple[int, int, int]:
    """Tensors alive together are the same values in the same memory where this is equal."""
    return tensor.data_ptr(), tensor.numel(), version_of(tensor)


@contextmanager
def watching(network: Network, names: list[str], take: Take) -> Iterator[None]:
    """Inside, forwards give the inputs of these layers to ``take``."""
    experts: dict[nn.Module, dict[str, str]] = {}
    hooks: list[Any] = []
    with ExitStack() as stack:
        try:
            for name in names:
                layer = network.layers[name]
                for slot in network.slots(name):
                    if layer.role == "experts":
                        experts.setdefault(slot.owner, {})[slot.attribute] = name
                        continue
                    hook = _taking(layer, take)
                    hooks.append(
                        slot.owner.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
                    )
            forwards = [
                forward_by_expert(module, network.input_changes(module), _naming(named, take))
                for module, named in experts.items()
            ]
            stack.enter_context(patched(list(experts), forwards))
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _taking(layer: Layer, take: Take) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        take(layer.name, None, inputs.reshape(-1, inputs.shape[-1]))

    return hook


def _naming(named: dict[str, str], take: Take) -> Callable[[str, int, Tensor], None]:
    def take_expert(attribute: str, expert: int, inputs: Tensor) -> None:
        if attribute in named:
            take(named[attribute], expert, inputs)

    return take_expert


def _run_block(network: Network, ids: Tensor, block: int, state: Tensor | None) -> Tensor:
    resumed = network.resumable and state is not None
    forwards = network.resuming(block, state) if resumed else network.resuming(0, None)
    return network.output_of(ids, block, forwards)


def _run_to_head(network: Network, ids: Tensor, forwards: list[Forward] | None) -> None:
    """Ends before the head's own product, the largest of all."""
    head = network.model.get_output_embeddings()

    def reached(_module: nn.Module, _args: Any) -> None:
        raise Reached

    stop = head.register_forward_pre_hook(reached)  # after the hook that takes the inputs
    try:
        network.run(ids, forwards or network.resuming(0, None))
    except Reached:
        pass
    finally:
        stop.remove()
