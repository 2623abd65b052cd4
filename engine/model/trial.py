"""Runs one block on a few tokens repeatedly: unchanged, and with some outputs scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.inputs import watching, where, why_not_gathered, why_unseen
from engine.model.network import Network
from engine.model.torch_internals import own_parameters

ROUNDING = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-8}
"""Differences up to this part of the largest value are none: one rounding of bfloat16. On CPU
bfloat16 shows none at all, float16 up to 2⁻¹⁰, where small values lose digits when divided."""
ROUNDING_32 = 2.0**-17
"""The same in float32, where CPUs show none at all: 64 roundings, for sums in another order."""


@dataclass(eq=False)
class Trace:
    """Observations from one run of a block."""

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
    """Modules with weights alone that are no layers, such as routers, by what they were given."""


class Trial:
    """One block on a few tokens, to be run repeatedly."""

    def __init__(self, network: Network, ids: Tensor, block: int, state: Tensor) -> None:
        self.network, self.ids, self.block, self.state = network, ids, block, state
        self.names = [
            name
            for name, layer in network.layers.items()
            if layer.start == block
            and why_unseen(network, name) is None
            and why_not_gathered(network, name) is None
        ]
        self.rounding = ROUNDING.get(network.dtype, ROUNDING_32)
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
            held = {
                name: _times(network.weight(name), scale) for name, scale in (undone or {}).items()
            }
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
                network.stop_if_asked()
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
        """Whether they are equal but for rounding."""
        if a.shape != b.shape:
            return False
        largest = float(b.abs().amax()) if b.numel() else 0.0
        return bool(((a - b).abs() <= self.rounding * largest).all())

    @contextmanager
    def _scaled(self, name: str, factor: Tensor, held: dict[str, Tensor]) -> Iterator[None]:
        layer = self.network.layers.get(name)
        if layer is not None and layer.role == "experts":  # no hook sees their outputs
            weight = held.get(name, self.network.weight(name))
            held[name] = _times(weight, factor.unsqueeze(-1))
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
        layers = {id(slot.owner) for name in network.layers for slot in network.slots(name)}
        inside = {
            id(module): i for i, b in enumerate(network.blocks.modules) for module in b.modules()
        }
        n = len(network.blocks)
        for path, module in network.model.named_modules():
            here = inside.get(id(module), n) == self.block
            if here and id(module) not in layers and own_parameters(module):
                yield path, module


def _times(weight: Tensor, scale: Tensor) -> Tensor:
    """In the weight's dtype, which has every power of two that is tried."""
    return weight * scale.to(weight.dtype)


def _noting(path: str, seen: Trace, alive: list[object]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor) and next(module.children(), None) is None:
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
    names = {name for name, one in own_parameters(module).items() if one is not None}
    weight = own_parameters(module).get("weight")
    fits = weight is not None and tuple(weight.shape) == tuple(output.shape[-1:])
    return fits and names <= {"weight", "bias"} and next(module.children(), None) is None
