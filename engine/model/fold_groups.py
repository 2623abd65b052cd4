"""Fold groups: layers that share an input, and what before them absorbs a scale per channel.

``x Wᵀ = (x / s)(W · diag(s))ᵀ``: a scale in front of a quantised weight is free if the operation
that makes ``x`` can be stored divided by ``s``: a norm, or the projection whose output channels the
inputs are. AWQ and SmoothQuant depend on it. Names play no role here: see `engine.model.absorbers`
for how groups are found and verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.model.absorbers import Found, block_groups
from engine.model.lanes import Lane
from engine.model.network import Network
from engine.model.selfcheck import some_ids

_found: WeakKeyDictionary[Network, dict[int, list[Found]]] = WeakKeyDictionary()
_groups: WeakKeyDictionary[Network, dict[str, FoldGroup]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class FoldGroup:
    """Layers that share an input, and what absorbs ``1 / s`` before them."""

    layers: tuple[str, ...]
    absorber: str
    """A norm's name in the model, or a layer; empty if there is none."""
    why_not: str
    """Why there is none, as a sentence."""
    kind: Literal["norm", "layer", "none"]
    channels: Tensor | None = None
    """Of a layer that absorbs: the output channel that each input channel is, int64 ``[in]``."""
    weight: Tensor | None = None
    """Of a norm: its weight ``[in]`` as stored."""
    bias: Tensor | None = None
    """Of a norm that has one: ``[in]``."""
    unit: float = 0.0
    """Of a norm: what is added to its weight before it multiplies; 1 for Gemma's, else 0."""

    def gain(self, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """What the input becomes relative to what it was, ``x' = gain · x``, float32 ``[in]``.

        ``1 / s``, but for the rounding of the norm's weight to the dtype it is stored in: a
        simulation that multiplies the columns of its weight by it measures what ships. Where the
        norm's weight is 0 the input is 0, or its bias, and the gain is ``1 / s`` itself. A layer's
        rows are rounded element by element, which is a change of that layer: see `absorbed`.

        Args:
            scale: ``s``, ``[in]``, positive.
            dtype: of the checkpoint that the norm is written to.

        Raises:
            UsageError: nothing absorbs a scale, or ``scale`` has the wrong shape.
        """
        scale = self._checked(scale)
        if self.weight is None:
            return 1 / scale
        weight = self.weight.to(torch.float32) + self.unit
        ratio = (self._stored(scale, dtype).to(torch.float32) + self.unit) / weight
        return torch.where(weight == 0, 1 / scale, ratio)

    def offset(self, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """What the input is given besides, ``x' = gain · x + offset``, float32 ``[in]``.

        The bias of a norm is rounded on its own; 0 for one without.

        Raises:
            UsageError: as :meth:`gain`.
        """
        gain = self.gain(scale, dtype)
        if self.bias is None:
            return torch.zeros_like(gain)
        bias = self.bias.to(torch.float32)
        return (bias / self._checked(scale)).to(dtype).to(torch.float32) - bias * gain

    def _stored(self, scale: Tensor, dtype: torch.dtype) -> Tensor:
        assert self.weight is not None
        return ((self.weight.to(torch.float32) + self.unit) / scale - self.unit).to(dtype)

    def _checked(self, scale: Tensor) -> Tensor:
        if self.kind == "none":
            raise UsageError(f"{self.layers[0]}: {self.why_not}")
        of = self.weight if self.weight is not None else self.channels
        assert of is not None
        if scale.shape != of.shape:
            raise UsageError(
                f"{self.layers[0]}: a scale of shape {list(scale.shape)}, expected {list(of.shape)}"
            )
        return scale.to(of.device, torch.float32)


def fold_groups(network: Network) -> dict[str, FoldGroup]:
    """The fold group of every layer but the embedding; one object for all layers of a group.

    Costs about ten forwards of a few tokens, once a network; a call that is preempted goes on
    where it stopped when it is made again.

    Raises:
        Preempted: ``should_stop`` said so.
        RuntimeError: weights are held.
    """
    if network in _groups:
        return _groups[network]
    done = _found.setdefault(network, {})
    ids = some_ids(network)
    groups: dict[str, FoldGroup] = {}
    for block, state in _states(network, ids):  # a block that is read stays until the next one
        if block not in done:
            done[block] = block_groups(network, ids, block, state, done)
        for found in done[block]:
            groups |= dict.fromkeys(found.layers, _group(network, found))
    for name, layer in network.layers.items():
        if layer.role != "embedding" and name not in groups:
            groups[name] = FoldGroup((name,), "", f"{name} is outside of the blocks", "none")
    _groups[network] = groups
    return groups


def _states(network: Network, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every block with its input, while the block is at hand; and the output of the last."""
    if not network.streamed:
        for block, state in enumerate(network.states(ids)):
            with network.at_hand([block]):
                yield block, state
        return
    lane = Lane(network, ids, 0, None)
    first: list[Tensor] = []
    network.visit(ids, -1, None, lambda _k, state: first.append(state), until=0)
    lane.state = first[0]
    for block in range(len(network.blocks)):
        with network.at_hand([block]):
            yield block, lane.reached()
            lane.advance(block + 1)
    yield len(network.blocks), lane.reached()


def absorbed(
    network: Network, group: FoldGroup, scale: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The absorber's parameters with ``1 / s`` folded in.

    Returns:
        By name in the model's ``state_dict``, in ``dtype``, as the model orients it.

    Raises:
        UsageError: nothing absorbs a scale; or the shape of ``scale`` is another.
    """
    scale = group._checked(scale)
    if group.kind == "norm":
        stored = {f"{group.absorber}.weight": group._stored(scale, dtype)}
        if group.bias is not None:
            stored[f"{group.absorber}.bias"] = (group.bias.to(torch.float32) / scale).to(dtype)
        return stored
    assert group.channels is not None
    layer, slot = network.layers[group.absorber], network.slot(group.absorber)
    factor = torch.ones(layer.shape[-2], device=scale.device)
    factor[group.channels] = 1 / scale
    weight = (network.weight(layer.name).to(torch.float32) * factor.unsqueeze(-1)).to(dtype)
    turned = slot.oriented(weight).contiguous()
    if layer.role == "experts":
        return {layer.module: turned}
    stored = {f"{layer.module}.weight": turned}
    bias = getattr(slot.owner, "bias", None)
    if bias is not None:
        with network.at_hand([layer.start]):
            stored[f"{layer.module}.bias"] = (bias.detach().to(torch.float32) * factor).to(dtype)
    return stored


def _group(network: Network, found: Found) -> FoldGroup:
    if found.norm is not None:
        module = network.model.get_submodule(found.absorber)
        bias = getattr(module, "bias", None)
        return FoldGroup(
            found.layers,
            found.absorber,
            "",
            "norm",
            weight=module.weight.detach().clone(),  # the block may be gone when it is used
            bias=None if bias is None else bias.detach().clone(),
            unit=found.norm,
        )
    if found.channels is not None:
        return FoldGroup(found.layers, found.absorber, "", "layer", found.channels)
    return FoldGroup(found.layers, "", found.why_not, "none")
