"""What absorbs a scale per channel: found by the identity of tensors, verified by numbers.

One block runs on a few tokens. A norm is a candidate where the tensor that it returns is the
tensor that the layers are given. A projection is one where the layers' input is its output channel
by channel; which channel is which is read off by scaling every output channel by digits of its own
number. Either is accepted only if a scale on its outputs reaches exactly the inputs of these
layers, and with weights that undo it changes nothing else. Scales are powers of two, which no
floating-point product rounds: the comparison is exact but for kernels that sum in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.inputs import where, watching, why_unseen
from engine.model.network import Network

ULPS = 64
"""Differences up to this many of the dtype's epsilons, relative to the largest value, are none."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found for the layers that are given one tensor."""

    layers: tuple[str, ...]
    absorber: str = ""
    why_not: str = ""
    norm: float | None = None
    """Of a norm: what it adds to its weight."""
    channels: Tensor | None = None
    """Of a layer: its output channel for each input channel."""
    source: tuple[str, Tensor] | None = None
    """The layer that the input is made of channel by channel, also where it absorbs nothing."""


@dataclass(eq=False)
class Trace:
    """What one run of a block showed."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Of every layer that was called, in the order of calls; rows of experts one after another."""
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    keys: dict[str, object] = field(default_factory=dict)
    """Where the tensor lies that a layer was given."""
    makers: dict[object, str] = field(default_factory=dict)
    """The norm that returned the tensor that lies there."""
    calls: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """The arguments of each norm."""
    readers: dict[object, list[str]] = field(default_factory=dict)
    """Modules with weights of their own that are no layers, by the tensor they were given."""


def block_groups(
    network: Network,
    ids: Tensor,
    block: int,
    state: Tensor,
    before: Mapping[int, Sequence[Found]],
) -> list[Found]:
    """The groups of one block, or of the head for ``block == n_blocks``.

    Args:
        before: what was found in other blocks. Layers of the same place are looked up there: the
            projection that fed them in another block is the only one that is tried here.

    Raises:
        Preempted: ``should_stop`` said so.
    """
    run = _Block(network, ids, block, state)
    with torch.no_grad():
        seen = run.trace(survey=True)
        groups: list[Found] = []
        for layers in _together(run, seen):
            groups.append(_absorber(run, seen, layers, before))
    unseen = [n for n in run.names if n not in seen.inputs]
    groups += [Found((name,), why_not=f"{name} was given no tokens") for name in unseen]
    for name, layer in network.layers.items():
        if layer.start == block and (why := why_unseen(network, name)):
            groups.append(Found((name,), why_not=why))
    return groups


class _Block:
    """One block on a few tokens, to be run again and again."""

    def __init__(self, network: Network, ids: Tensor, block: int, state: Tensor) -> None:
        self.network, self.ids, self.block, self.state = network, ids, block, state
        self.names = [
            name
            for name, layer in network.layers.items()
            if layer.start == block and why_unseen(network, name) is None
        ]
        self.eps = torch.finfo(network.dtype).eps
        self._whole: Tensor | None = None

    def trace(
        self,
        *,
        scaled: tuple[str, Tensor] | None = None,
        undone: Mapping[str, Tensor] | None = None,
        survey: bool = False,
        whole: bool = False,
    ) -> Trace:
        """Runs it.

        Args:
            scaled: a norm or a layer, and what its output channels are multiplied by.
            undone: by layer, what the columns of its weight are multiplied by.
            survey: note tensors' places too.
            whole: run the model to its end, whose output it then is.
        """
        network, n, seen = self.network, len(self.network.blocks), Trace()
        alive: list[object] = []

        def take(layer: str, _expert: int | None, inputs: Tensor) -> None:
            rows = [seen.inputs[layer]] if layer in seen.inputs else []
            seen.inputs[layer] = torch.cat([*rows, inputs])
            alive.append(inputs)
            if network.layers[layer].role != "experts":
                seen.keys.setdefault(layer, where(inputs))

        with ExitStack() as stack:
            held = {name: network.weight(name) * scale for name, scale in (undone or {}).items()}
            if scaled is not None:
                stack.enter_context(self._scaled(*scaled, held))
            if held:
                stack.enter_context(network.holding(held))
            stack.enter_context(watching(network, self.names, take))
            if survey:
                stack.enter_context(self._surveyed(seen, alive))
            resumed = network.resumable or (self.block == n and network.head_resumable)
            forwards = network.resuming(*((self.block, self.state) if resumed else (0, None)))
            if self.block == n or whole:
                network._stop_if_asked()
                seen.output = network.run(self.ids, forwards)
            else:
                seen.output = network.output_of(self.ids, self.block, forwards)
        return seen

    def output(self, seen: Trace, *, whole: bool) -> Tensor:
        """The block's output as it is, or the model's."""
        if not whole:
            return seen.output
        if self._whole is None:
            self._whole = self.trace(whole=True).output
        return self._whole

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether they are equal but for the order of sums."""
        if a.shape != b.shape:
            return False
        largest = float(b.abs().amax()) if b.numel() else 0.0
        return bool(((a - b).abs() <= ULPS * self.eps * largest).all())

    @contextmanager
    def _scaled(self, name: str, factor: Tensor, held: dict[str, Tensor]) -> Iterator[None]:
        layer = self.network.layers.get(name)
        if layer is not None and layer.role == "experts":  # no hook sees their outputs
            held[name] = held.get(name, self.network.weight(name)) * factor.unsqueeze(-1)
            yield
            return
        network = self.network
        module = network.slot(name).owner if layer else network.model.get_submodule(name)
        hook = module.register_forward_hook(lambda _m, _a, output: output * factor.to(output))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _surveyed(self, seen: Trace, alive: list[object]) -> Iterator[None]:
        hooks: list[Any] = []
        try:
            for path, module in self._others():
                hooks.append(
                    module.register_forward_hook(_noting(path, seen, alive), with_kwargs=True)
                )
            for name in self.names:
                if self.network.layers[name].role == "experts":
                    owner, attribute, _turned = self.network.slot(name)
                    note = _noting_experts(name, attribute, seen, alive)
                    hooks.append(owner.register_forward_pre_hook(note))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _others(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules with weights of their own, here or outside of all blocks, that are no layers."""
        network = self.network
        layers = {id(network.slot(name).owner) for name in network.layers}
        inside = {id(module): i for i, b in enumerate(network.blocks) for module in b.modules()}
        n = len(network.blocks)
        for path, module in network.model.named_modules():
            here = inside.get(id(module), n) == self.block
            if here and id(module) not in layers and module._parameters:
                yield path, module


def _noting(path: str, seen: Trace, alive: list[object]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor):
            alive.append(given)
            seen.readers.setdefault(where(given), []).append(path)
        if isinstance(output, Tensor) and _per_channel(module, output):
            alive.append(output)
            seen.makers[where(output)] = path
            seen.calls[path] = (args, kwargs)

    return hook


def _noting_experts(
    name: str, attribute: str, seen: Trace, alive: list[object]
) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        first = attribute != "down_proj"
        alive.append(args[0])
        seen.keys[name] = where(args[0]) if first else name  # an intermediate has no other reader

    return hook


def _per_channel(module: nn.Module, output: Tensor) -> bool:
    """Whether it has a weight per output channel, and at most a bias besides."""
    names = {name for name, one in module._parameters.items() if one is not None}
    weight = module._parameters.get("weight")
    fits = weight is not None and tuple(weight.shape) == tuple(output.shape[-1:])
    return fits and names <= {"weight", "bias"} and next(module.children(), None) is None


def _together(run: _Block, seen: Trace) -> list[tuple[str, ...]]:
    """Layers by the tensor they are given, in the model's order."""
    groups: dict[object, list[str]] = {}
    for name in run.names:
        if name in seen.inputs:
            groups.setdefault(seen.keys[name], []).append(name)
    return [tuple(names) for names in groups.values()]


def _absorber(
    run: _Block,
    seen: Trace,
    layers: tuple[str, ...],
    before: Mapping[int, Sequence[Found]],
) -> Found:
    key = seen.keys[layers[0]]
    if key in seen.makers:
        return _norm(run, seen, layers, seen.makers[key])
    why, source = f"nothing before {layers[0]} makes its input channel by channel", None
    for candidate, known in _candidates(run, seen, layers, before):
        channels = _channels(run, seen, layers, candidate) if known is None else known
        if channels is None or not _reads(run, seen, layers, candidate, channels):
            continue
        source, used = (candidate, channels), len(channels.unique())
        if used < len(channels):
            why = (
                f"{candidate} makes this input, but each of its channels is read "
                f"{len(channels) // used} times and cannot have a scale for each"
            )
            continue
        why = _leak(run, seen, layers, candidate, channels)
        if not why:
            return Found(layers, candidate, channels=channels, source=source)
    return Found(layers, why_not=why, source=source)


def _candidates(
    run: _Block,
    seen: Trace,
    layers: tuple[str, ...],
    before: Mapping[int, Sequence[Found]],
) -> list[tuple[str, Tensor | None]]:
    """Layers that run before these, the latest first, with their channels where they are known."""
    network, place = run.network, [_place(run.network, name) for name in layers]
    order = list(seen.inputs)
    earlier = order[: min(order.index(name) for name in layers)]
    for found in (one for groups in before.values() for one in groups):
        if [_place(network, name) for name in found.layers] == place:
            if found.source is None:
                return []
            source, channels = found.source
            same = [n for n in earlier if _place(network, n) == _place(network, source)]
            return [(name, channels) for name in same]
    width = network.layers[layers[0]].shape[-1]
    outputs = {name: network.layers[name].shape[-2] for name in earlier}
    fit = [n for n in reversed(earlier) if outputs[n] >= width or width % outputs[n] == 0]
    return [(name, None) for name in fit]


def _place(network: Network, name: str) -> str:
    """Its name without the block's index."""
    layer = network.layers[name]
    return layer.module.replace(f".{layer.block}.", ".", 1)


def _channels(run: _Block, seen: Trace, layers: tuple[str, ...], candidate: str) -> Tensor | None:
    """The candidate's output channel that each input channel is; None where it is not one.

    Output channel ``j`` is multiplied by ``2^−d`` for every digit ``d`` of ``j`` in turn. A channel
    that is 0 on all tokens tells nothing: it is taken to follow the others where these are in a row.
    """
    outputs = run.network.layers[candidate].shape[-2]
    base = 4 if run.network.dtype == torch.float16 else 16  # 2^−15 is none of its numbers
    x = seen.inputs[layers[0]]
    largest, row = x.abs().max(dim=0)
    alive = largest > 0
    numbers = torch.arange(outputs, device=x.device)
    channels = torch.zeros(x.shape[-1], dtype=torch.int64, device=x.device)
    place = 1
    while place < outputs:
        digits = (numbers // place) % base
        changed = run.trace(scaled=(candidate, 2.0**-digits)).inputs[layers[0]]
        if changed.shape != x.shape:
            return None
        ratio = (changed.gather(0, row[None]) / x.gather(0, row[None]))[0].float()
        digit = torch.where(alive, -ratio.log2(), 0).nan_to_num(-1, -1, -1).round()
        off = (changed - x * 2.0**-digit).abs() > ULPS * run.eps * largest
        if bool((digit < 0).any() | (digit >= base).any() | off.any()):
            return None
        if place == 1 and not bool(digit.any()):
            return None  # it does not depend on the candidate
        channels += digit.long() * place
        place *= base
    ahead = channels - torch.arange(len(channels), device=x.device)
    if not bool(alive.all()):
        if not bool((ahead[alive] == ahead[alive][:1]).all()):
            return None
        channels = torch.arange(len(channels), device=x.device) + ahead[alive][0]
    return channels


def _scale(width: int, like: Tensor) -> Tensor:
    """Powers of two, none of them 1, ``[width]``."""
    generator = torch.Generator().manual_seed(width)
    exponent = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    chosen = exponent[torch.randint(0, 4, (width,), generator=generator)]
    return (2.0**chosen).to(like.device)


def _reads(
    run: _Block, seen: Trace, layers: tuple[str, ...], candidate: str, channels: Tensor
) -> bool:
    """Whether a scale on the candidate's outputs arrives in the inputs, channel by channel."""
    x = seen.inputs[layers[0]]
    factor = 1 / _scale(run.network.layers[candidate].shape[-2], x)
    changed = run.trace(scaled=(candidate, factor)).inputs[layers[0]]
    return run.same(changed, x * factor[channels])


def _leak(
    run: _Block, seen: Trace, layers: tuple[str, ...], absorber: str, channels: Tensor | None
) -> str:
    """What else changes when the absorber takes a scale and the layers undo it; empty: nothing."""
    network, x = run.network, seen.inputs[layers[0]]
    scale = _scale(x.shape[-1], x)
    factor = 1 / scale
    if channels is not None:
        factor = torch.ones(network.layers[absorber].shape[-2], device=x.device)
        factor[channels] = 1 / scale
    whole = not network.resumable  # what a block leaves to later ones is not in its output
    undone = dict.fromkeys(layers, scale)
    after = run.trace(scaled=(absorber, factor), undone=undone, whole=whole)
    for name, inputs in seen.inputs.items():
        expected = inputs / scale if name in layers else inputs
        if not run.same(after.inputs[name], expected):
            return f"a scale in {absorber} reaches {name} in another way"
    if not run.same(after.output, run.output(seen, whole=whole)):
        return f"what {absorber} gives is read by something that is no layer too"
    return ""


def _norm(run: _Block, seen: Trace, layers: tuple[str, ...], norm: str) -> Found:
    key = seen.keys[layers[0]]
    others = [path for path in seen.readers.get(key, ()) if path != norm]
    if others:
        return Found(layers, why_not=f"{others[0]}, which is no layer, reads what {norm} gives too")
    unit = _unit(run.network.model.get_submodule(norm), *seen.calls[norm], ULPS * run.eps)
    if unit is None:
        return Found(layers, why_not=f"{norm} does not multiply by its weight channel by channel")
    why = _leak(run, seen, layers, norm, None)
    return Found(layers, why_not=why) if why else Found(layers, norm, norm=unit)


def _unit(module: nn.Module, args: Any, kwargs: Any, tolerance: float) -> float | None:
    """What a norm adds to its weight before it multiplies, 0 or 1; None where it does not.

    Read off its outputs for weights of 0 and of 1 with no bias, and checked on its own.
    """
    parameters = {name: one for name, one in module._parameters.items() if one is not None}
    weight, none = parameters["weight"], {n: torch.zeros_like(p) for n, p in parameters.items()}

    def output(**changed: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, {**none, **changed}, args, kwargs)
        return result

    at_0, at_1 = output(), output(weight=torch.ones_like(weight))
    normed = at_1 - at_0
    largest = float(normed.abs().max())
    for unit in (0.0, 1.0):
        own = (weight + unit) * normed + parameters.get("bias", torch.zeros_like(weight))
        close = (at_0 - unit * normed).abs().max() <= tolerance * largest
        wide = max(largest, float(own.abs().max()))
        if close and (output(**parameters) - own).abs().max() <= tolerance * wide:
            return unit
    return None
