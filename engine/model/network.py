"""`Network`: a loaded model: its blocks and layers, resumed forwards, swapped weights.

Between two calls the network is at rest: reference weights, no patched forward, gradients as
they were. Every method computes under ``no_grad`` (not inference mode: its tensors could not be
differentiated later), and nothing is cached of keys and values unless it is asked for.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UsageError
from engine.model.block_source import BlockSource, ResidentBlocks
from engine.model.blocks import (
    Forward,
    Reached,
    find_blocks,
    hidden_of,
    join_output,
    patched,
    split_output,
    with_hidden,
)
from engine.model.experts import Change, forward_by_expert, why_fused
from engine.model.layers import Layer, Slot, list_layers
from engine.model.torch_internals import hook_tables, own_parameters, version_of


@dataclass(frozen=True, eq=False)
class StandIn:
    """What a layer computes with instead of its own weight."""

    weight: Tensor
    """Oriented as :attr:`Layer.shape`."""
    inputs: Callable[[Tensor], Tensor] | None = None
    """Applied first to the layer's inputs ``[…, in]``; None leaves them unchanged. For experts, one
    call per expert with its own tokens."""


@dataclass(frozen=True, eq=False)
class Compact:
    """A weight in fewer bytes: it is made whole while its block runs, and freed after it."""

    make: Callable[[], Tensor]
    """The weight, oriented as :attr:`Layer.shape`; the same at every call."""
    shape: tuple[int, ...]
    nbytes: int
    """Of what it is made from."""


Held = Tensor | StandIn | Compact
"""A weight alone, or with a change of its inputs, or one that is still to be made whole."""


def held_bytes(held: Held) -> int:
    """Bytes of what a layer computes with, as it is kept."""
    return (held.weight if isinstance(held, StandIn) else held).nbytes


def whole(held: Held) -> Tensor | StandIn:
    """What a layer computes with, the weight made whole."""
    return held.make() if isinstance(held, Compact) else held


class Forwards(list[Forward]):
    """Forwards of all blocks.

    Args:
        forwards: by block.
        embeds: whether what the embedding gives reaches a block, or may do so.
    """

    def __init__(self, forwards: Iterable[Forward], *, embeds: bool) -> None:
        super().__init__(forwards)
        self.embeds = embeds


class Preempted(Exception):
    """Raised at the start of a block when ``should_stop`` says so; the network is at rest again."""


class Network:
    """A causal language model in evaluation mode.

    Args:
        model: a transformers model whose head is not tied to its embedding.
        made_from: for every ``state_dict`` key the disk names it is made from.
        tied: the head was tied on disk.
        notes: sentences for the user about how it was loaded.
        zeroed: sentences about weights that were not finite, and are 0 here.
        source: makes the source of the blocks' weights from their modules.
    """

    def __init__(
        self,
        model: Any,
        made_from: Mapping[str, tuple[str, ...]],
        *,
        tied: bool = False,
        notes: tuple[str, ...] = (),
        zeroed: tuple[str, ...] = (),
        source: Callable[[list[nn.Module]], BlockSource] = ResidentBlocks,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.tied = tied
        self.notes = notes
        self.zeroed = zeroed
        embedding = model.get_input_embeddings().weight
        self.device: torch.device = embedding.device
        self.dtype: torch.dtype = embedding.dtype
        name, modules = find_blocks(model)
        listed = list_layers(model, name, len(modules), made_from)
        self.blocks = source(modules)
        self.layers: dict[str, Layer] = {name: layer for name, (layer, _slots) in listed.items()}
        self.without_effect: tuple[str, ...] = ()
        """Layers whose change did not reach the logits of a few tokens; see `engine.model.uses`."""
        self.should_stop: Callable[[], bool] | None = None
        self.resumable = False
        self.head_resumable = False
        self.why_not_resumable: str | None = "resuming has not been checked"
        text = model.config.get_text_config()
        self.state_size: int = getattr(text, "hidden_size", embedding.shape[-1])
        """Values of a hidden state per token: some models have several streams of them."""
        self._slots: dict[str, tuple[Slot, ...]] = {
            name: slots for name, (_layer, slots) in listed.items()
        }
        self._reference = {name: slots[0].parameter for name, slots in self._slots.items()}
        self._versions = {name: version_of(p) for name, p in self._reference.items()}
        self._places = Counter(
            id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)
        )
        # Gathered once: walking a deep model at every step would cost a third of its sweep.
        self._hook_tables: list[Mapping[int, object]] = [
            table for module in model.modules() for table in hook_tables(module)
        ]
        self._hooks = self._count_hooks()
        self._forwards = [block.__dict__.get("forward") for block in modules]
        self.beside: list[tuple[Any, ...] | None] = [None] * len(modules)
        self._experts = {
            slot.owner: slot.owner.__dict__.get("forward")
            for name, slots in self._slots.items()
            for slot in slots
            if self.layers[name].role == "experts"
        }
        self._input_changes: dict[nn.Module, dict[str, Change]] = {}
        self._compact: dict[int, list[tuple[str, Compact]]] = {}
        """By block, what is held there but not whole yet."""
        self.takes_positions = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._holding = False
        self._run: object = None
        """The run of the model that embedding and head are read for."""

    # -- weights -------------------------------------------------------------------------------

    def weight(self, name: str) -> Tensor:
        """The reference weight, ``[out, in]`` or ``[experts, out, in]``: a view, not to be written.

        It is the reference also while another weight is held.
        """
        slot, block, parameter = self.slot(name), self.layers[name].block, self._reference[name]
        values = self.blocks.reference(-1 if block is None else block, parameter)
        return slot.oriented(values.detach())

    @contextmanager
    def holding(self, weights: Mapping[str, Held]) -> Iterator[None]:
        """Inside, the model computes with ``weights``; every exit restores the reference.

        Args:
            weights: by layer name, oriented as in :attr:`Layer.shape`; cast to the dtype and
                device of the weight each stands in for. A `StandIn` changes the inputs too; a
                `Compact` one is made whole while its block runs, or here if it acts elsewhere.

        Raises:
            UsageError: an unknown layer, a weight of another shape, or inputs that cannot be
                changed.
            RuntimeError: weights are held already.
        """
        if self._holding:
            raise RuntimeError("weights are held already; hold them in one call")
        changes: list[tuple[nn.Module, Change]] = []
        experts: dict[nn.Module, dict[str, Change]] = {}
        compact: dict[int, list[tuple[str, Compact]]] = {}
        now: dict[str, Tensor] = {}
        for name, held in weights.items():
            slot = self.slot(name)
            if isinstance(held, StandIn) and held.inputs is not None:
                if self.layers[name].role == "embedding":
                    raise UsageError(f"{name}: the inputs of this kind of layer cannot be changed")
                if self.layers[name].role == "experts":
                    if why := why_fused(slot.owner):
                        raise UsageError(f"{name}: {why}, nor changed")
                    for each in self.slots(name):
                        experts.setdefault(each.owner, {})[each.attribute] = held.inputs
                else:
                    changes += [(each.owner, held.inputs) for each in self.slots(name)]
            shape = (held.weight if isinstance(held, StandIn) else held).shape
            if tuple(shape) != self.layers[name].shape:
                raise UsageError(
                    f"{name} has shape {list(self.layers[name].shape)}; "
                    f"a weight of shape {list(shape)} cannot stand in for it"
                )
            if isinstance(held, Compact) and (block := self._only_block(name)) is not None:
                compact.setdefault(block, []).append((name, held))
                continue
            found = whole(held)
            now[name] = found.weight if isinstance(found, StandIn) else found
        by_expert = [forward_by_expert(module, change) for module, change in experts.items()]
        self._holding, self._input_changes, self._compact = True, experts, compact
        hooks: list[Any] = []
        try:
            for module, change in changes:
                hooks.append(module.register_forward_pre_hook(_changing(change)))
            with self._in_place(now), patched(list(experts), by_expert):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self._holding, self._input_changes, self._compact = False, {}, {}

    def _only_block(self, name: str) -> int | None:
        """The block that a layer's weight acts in, if that is the only place."""
        layer = self.layers[name]
        return layer.block if layer.block is not None and layer.uses == (layer.block,) else None

    @contextmanager
    def _in_place(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the slots of layers hold these weights."""
        filled: list[tuple[Slot, nn.Parameter]] = []
        try:
            for name, weight in weights.items():
                slot, reference = self.slot(name), self._reference[name]
                # the reference's memory layout: another one may round differently
                value = slot.oriented(weight.detach()).to(reference.device, reference.dtype)
                stand_in = nn.Parameter(value.contiguous(), requires_grad=False)
                for each in self.slots(name):
                    filled.append((each, reference))
                    own_parameters(each.owner)[each.attribute] = stand_in
            yield
        finally:
            for slot, reference in filled:
                own_parameters(slot.owner)[slot.attribute] = reference

    def input_changes(self, module: nn.Module) -> Mapping[str, Change]:
        """What is done now to the inputs of a module of experts, by parameter."""
        return self._input_changes.get(module, {})

    def slot(self, name: str) -> Slot:
        """Where the weight of a layer lives: the first place, if modules share it.

        Raises:
            UsageError: it is no layer of this model.
        """
        return self.slots(name)[0]

    def slots(self, name: str) -> tuple[Slot, ...]:
        """Everywhere that the weight of a layer lives.

        Raises:
            UsageError: it is no layer of this model.
        """
        if name not in self._slots:
            raise UsageError(f"{name!r} is not a layer of this model")
        return self._slots[name]

    def shares(self, module: nn.Module) -> bool:
        """Whether other places in the model compute with a parameter of this module."""
        return any(
            self._places[id(p)] > 1 for p in own_parameters(module).values() if p is not None
        )

    # -- blocks --------------------------------------------------------------------------------

    @contextmanager
    def at_hand(self, blocks: Iterable[int]) -> Iterator[None]:
        """Inside, these blocks have their weights, whoever runs them; see `BlockSource.block`.

        -1 is the embedding, the number of blocks the head; other numbers do nothing.
        """
        with ExitStack() as stack:
            for k in blocks:
                if 0 <= k < len(self.blocks) or (
                    self.blocks.outside and -1 <= k <= len(self.blocks)
                ):
                    stack.enter_context(self.blocks.block(k))
            yield

    @property
    def streamed(self) -> bool:
        """Whether blocks are read when a forward reaches them, and can be run one by one."""
        return self.resumable and self.blocks.at_once < len(self.blocks)

    @property
    def reading_s(self) -> float:
        """Seconds that reading all blocks once takes; 0 if they are resident."""
        return self.blocks.pace * len(self.blocks)

    @property
    def weights_in_memory(self) -> int:
        """Bytes of weights that are in memory at a time: all, or those outside of blocks and two
        blocks where they are streamed."""
        blocks = sorted(map(_bytes_of, self.blocks.modules))
        if self.blocks.at_once < len(blocks):
            blocks = blocks[-1 - self.blocks.at_once :]  # the next one is read meanwhile
        return self.weights_outside + max(sum(blocks), *map(_bytes, self._tables), 0)

    @property
    def _tables(self) -> list[Tensor]:
        """Weights outside of blocks that are read like them."""
        if not self.blocks.outside:
            return []
        found = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return [module.weight for module in found]

    @property
    def largest_block(self) -> int:
        """Bytes of the largest block's weights."""
        return max(map(_bytes_of, self.blocks.modules))

    @property
    def weights_outside(self) -> int:
        """Bytes of weights outside of blocks that are always in memory."""
        inside = {id(p) for block in self.blocks.modules for p in block.parameters()}
        inside |= set(map(id, self._tables))
        return sum(_bytes(p) for p in self.model.parameters() if id(p) not in inside)

    def stretches(self, start: int, until: int) -> list[range]:
        """Blocks from ``start`` to ``until`` (exclusive) in stretches that run in one forward.

        As many together as can have their weights at once: all where they are resident. A model
        that is not resumable is run from the embedding to the end or not at all: one stretch,
        though its blocks be read again for every window. ``start`` is -1 for the embedding, which
        belongs to the first stretch.
        """
        if start >= until:
            return []
        if start < 0 < until and self.blocks.outside and self.resumable:
            return [range(-1, 0), *self.stretches(0, until)]  # the embedding is in memory alone
        length = self.blocks.at_once if self.resumable else len(self.blocks)
        ends = list(range(max(start, 0), until, length))
        ends = [*ends[1:], until]
        return [range(a, b) for a, b in zip([start, *ends], ends, strict=False)]

    # -- forwards ------------------------------------------------------------------------------

    def states(self, ids: Tensor) -> list[Tensor]:
        """The input of every block and the output of the last: ``n_blocks + 1`` tensors.

        One pass that ends after the last block. ``ids`` is ``[batch, tokens]``.

        Raises:
            Preempted: ``should_stop`` said so.
        """
        states: list[Tensor] = []
        self.visit(ids, -1, None, lambda _k, state: states.append(state))
        return states

    def visit(
        self,
        ids: Tensor,
        k: int,
        state: Tensor | None,
        take: Callable[[int, Tensor], None],
        until: int | None = None,
    ) -> None:
        """Run from block ``k``; ``take`` gets every later block's input and the last one's output.

        Args:
            ids: ``[batch, tokens]``.
            k: the block that is given ``state``; ``-1``, no state, or a model that is not resumable
                runs from the embedding, and gives the input of block 0 too.
            state: the input of block ``k``.
            take: is given *i* and the input of block *i*; of ``n_blocks`` the last one's output.
            until: the last *i* that is wanted, above ``k``; nothing is run beyond it.

        Raises:
            Preempted: ``should_stop`` said so.
        """
        n = len(self.blocks)
        if k < 0 or state is None or not self.resumable:
            k, state = -1, None
        until = n if until is None else until
        assert k < until <= n, f"nothing lies between {k} and {until}"

        def passing(i: int, forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                if i > k:
                    take(i, self._kept(hidden_of(args, kwargs)))
                if i == until:
                    raise Reached
                output = forward(*args, **kwargs)
                if i == n - 1:
                    take(n, split_output(output)[0])
                    raise Reached
                return output

            return run

        forwards = self.resuming(max(k, 0), state)
        watched = [passing(i, run) if i >= k else run for i, run in enumerate(forwards)]
        watched = Forwards(watched, embeds=forwards.embeds)
        self.run_until_reached(ids, watched)

    def final_state(self, ids: Tensor, k: int, state: Tensor | None) -> Tensor:
        """The output of the last block, from the input ``state`` of block ``k`` on.

        ``k == n_blocks`` returns ``state`` itself; ``k == -1``, or no state, runs from the
        embedding, and so does every ``k`` of a model that is not resumable.

        Raises:
            Preempted: ``should_stop`` said so.
        """
        n = len(self.blocks)
        if k == n and state is not None:
            return state
        if k < 0 or k == n or not self.resumable:
            k, state = 0, None
        return self.output_of(ids, n - 1, self.resuming(k, state))

    def logits(
        self,
        ids: Tensor,
        final_state: Tensor,
        positions: slice | tuple[int, int],
        *,
        grad: bool = False,
    ) -> Tensor:
        """Logits ``[batch, b − a, vocabulary]`` at the positions from ``a`` to before ``b``.

        ``final_state`` is the output of the last block; the model's own forward adds norm, head,
        scaling and soft cap. Where a model cannot do that, the whole forward is run with the
        weights held now: call it inside the same :meth:`holding` as :meth:`final_state`. With
        ``grad`` they have a graph.

        Raises:
            Preempted: ``should_stop`` said so, where the whole forward is run.
        """
        a, b = self._range(positions, ids.shape[1])
        if not self.head_resumable:
            return self.run(ids, self.resuming(0, None), grad=grad)[:, a:b]
        skipping = self.resuming(len(self.blocks), final_state)
        if not self.takes_positions:
            return self.run(ids, skipping, grad=grad)[:, a:b]
        keep = torch.arange(a, b, device=self.device)
        return self.run(ids, skipping, grad=grad, logits_to_keep=keep)

    def resume(self, ids: Tensor, k: int, state: Tensor | None, **kwargs: Any) -> Tensor:
        """The model's logits, from the input ``state`` of block ``k`` on; see final_state."""
        whole = k < 0 or state is None
        whole = whole or not (self.head_resumable if k == len(self.blocks) else self.resumable)
        forwards = self.resuming(0, None) if whole else self.resuming(k, state)
        return self.run(ids, forwards, **kwargs)

    # -- building blocks
    # -----------------------------------------------------------------------------

    def run(
        self, ids: Tensor, forwards: list[Forward] | None, *, grad: bool = False, **kwargs: Any
    ) -> Tensor:
        """The model's logits with these block forwards; None: the blocks' own.

        Nothing is kept of keys and values, unless ``kwargs`` have a cache for them.
        """
        kwargs.setdefault("use_cache", False)
        if forwards is None:
            forwards = [self._running(i) for i in range(len(self.blocks))]
        embeds = getattr(forwards, "embeds", True)
        with (
            self._reading_around(embeds=embeds),
            torch.set_grad_enabled(grad),
            patched(self.blocks.modules, forwards),
        ):
            output = self.model(input_ids=ids.to(self.device), **kwargs)
        logits: Tensor = output.logits
        return logits

    def run_until_reached(
        self, ids: Tensor, forwards: list[Forward], *, grad: bool = False
    ) -> None:
        """Runs the model until one of these block forwards raises ``Reached``."""
        try:  # no logits_to_keep: some models skip positions in late blocks when it is given
            self.run(ids, forwards, grad=grad)
        except Reached:
            return
        raise RuntimeError("the forward ended before its last block")

    def output_of(self, ids: Tensor, block: int, forwards: list[Forward]) -> Tensor:
        """What block ``block`` returns with these block forwards; the forward ends there."""
        reached: list[Tensor] = []
        inner = forwards[block]

        def only(*args: Any, **kwargs: Any) -> Any:
            reached.append(split_output(inner(*args, **kwargs))[0])
            raise Reached

        changed = [*forwards[:block], only, *forwards[block + 1 :]]
        embeds = getattr(forwards, "embeds", True)
        self.run_until_reached(ids, Forwards(changed, embeds=embeds))
        return reached[0]

    def resuming(self, k: int, state: Tensor | None) -> Forwards:
        """Forwards that skip blocks before ``k`` and pass ``state`` to block ``k``.

        With ``k == n_blocks`` the last block returns ``state``. A state of None changes nothing.
        """
        n = len(self.blocks)

        def skipping(i: int) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = hidden_of(args, kwargs)
                if i == n - 1 and state is not None:
                    hidden = state
                return join_output(hidden, self.beside[i])

            return forward

        def running(i: int) -> Forward:
            run = self._running(i)

            def forward(*args: Any, **kwargs: Any) -> Any:
                self.stop_if_asked()
                if i == k and state is not None:
                    args, kwargs = with_hidden(args, kwargs, state)
                return run(*args, **kwargs)

            return forward

        found = [skipping(i) if i < k else running(i) for i in range(n)]
        return Forwards(found, embeds=state is None)

    @contextmanager
    def _reading_around(self, *, embeds: bool) -> Iterator[None]:
        """Inside, embedding and head are read when they are called, if they come and go.

        Args:
            embeds: whether what the embedding gives is used.
        """
        if not self.blocks.outside:
            yield
            return
        hooks: list[Any] = []
        this, before_this = object(), self._run
        self._run = this
        with ExitStack() as stack:

            def reads(module: nn.Module, k: int) -> None:
                own = stack.enter_context(ExitStack())

                def before(_module: nn.Module, _args: Any) -> None:
                    if self._run is this:  # not one inside that needs less
                        own.enter_context(self.blocks.block(k))

                def after(_module: nn.Module, _args: Any, _output: Any) -> None:
                    if self._run is this:
                        own.close()

                hooks.append(module.register_forward_pre_hook(before))
                hooks.append(module.register_forward_hook(after))

            if embeds:
                reads(self.model.get_input_embeddings(), -1)
            reads(self.model.get_output_embeddings(), len(self.blocks))
            try:
                yield
            finally:
                self._run = before_this
                for hook in hooks:
                    hook.remove()

    # -- checks --------------------------------------------------------------------------------

    def unlike_names(self) -> dict[str, tuple[int, ...]]:
        """Layers that do not act where their names say alone, and where they do.

        A layer in a block acts there, the head after the blocks, others before them. Of a model
        that runs whole for every measurement only what is shared, or acts after the blocks.
        """
        end = len(self.blocks)
        found: dict[str, tuple[int, ...]] = {}
        for name, layer in self.layers.items():
            named = layer.block
            if named is None:
                named = end if layer.role == "head" else -1
            moved = layer.uses != (named,)
            if not self.resumable:
                moved = layer.repeated or (
                    self.head_resumable and (layer.last == end) != (named == end)
                )
            if moved and name not in self.without_effect:
                found[name] = layer.uses
        return found

    def assert_at_rest(self) -> None:
        """Raise AssertionError unless the network is as it was opened."""
        assert not self._holding, "weights are held"
        for name, slots in self._slots.items():
            reference = self._reference[name]
            for slot in slots:
                assert slot.parameter is reference, f"{name} is not the reference weight"
            assert version_of(reference) == self._versions[name], f"{name} was written to"
        for i, block in enumerate(self.blocks.modules):
            assert block.__dict__.get("forward") is self._forwards[i], f"block {i} is patched"
        for module, forward in self._experts.items():
            assert module.__dict__.get("forward") is forward, "experts are patched"
        assert self._count_hooks() == self._hooks, "a hook is left on the model"
        assert torch.is_grad_enabled(), "gradients are left disabled"
        assert not torch.is_inference_mode_enabled(), "inference mode is left on"
        assert not self.model.training, "the model is in training mode"

    # -- internals -----------------------------------------------------------------------------

    def _range(self, positions: slice | tuple[int, int], tokens: int) -> tuple[int, int]:
        if isinstance(positions, slice):
            a, b, step = positions.indices(tokens)
            assert step == 1, "positions are consecutive"
            return a, b
        return positions

    def _kept(self, hidden: Tensor) -> Tensor:
        return hidden if self.resumable else hidden.clone()  # such a block may write into it

    def _running(self, i: int) -> Forward:
        """What runs block ``i`` as it is now, with its weights."""
        forward = self.blocks.modules[i].forward  # before another takes its place

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.blocks.block(i), self._made_whole(i):
                return forward(*args, **kwargs)

        return run

    def _made_whole(self, i: int) -> AbstractContextManager[None]:
        """Inside, block ``i`` computes with what is held compactly for it."""
        held = self._compact.get(i)
        if not held:
            return nullcontext()
        return self._in_place({name: each.make() for name, each in held})

    def stop_if_asked(self) -> None:
        """Raises Preempted if ``should_stop`` says so."""
        if self.should_stop is not None and self.should_stop():
            raise Preempted

    def _count_hooks(self) -> int:
        return sum(map(len, self._hook_tables))


def _bytes_of(block: nn.Module) -> int:
    return sum(map(_bytes, block.parameters()))


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _changing(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    return hook
