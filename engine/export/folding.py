"""Whether the scales of a recipe can be folded into the checkpoint that it is written to, and how.

What is written is what was measured: a norm's weight is divided and rounded as `FoldGroup.gain` has
it, and a layer that absorbs powers of two keeps its codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.export.folds import Folds, why_not_divided
from engine.formats.catalogue import KEPT
from engine.formats.grammar import Format, folds
from engine.model.fold_groups import FoldGroup, absorbed, fold_groups
from engine.model.names import join_names
from engine.workspace import Loaded


def why_not_folded(loaded: Loaded, formats: Mapping[str, Format]) -> dict[str, str]:
    """The layers of a recipe whose scale cannot be folded, with reasons; empty if all can.

    Costs about ten forwards of a few tokens, once a network.

    Args:
        loaded: the model.
        formats: the recipe; other layers are kept.
    """
    found: dict[str, str] = {}
    if not any(map(folds, formats.values())):
        return found
    groups, names = fold_groups(loaded.network), _Names(loaded)
    for name, fmt in formats.items():
        if folds(fmt) and (why := _why_not(loaded, groups[name], name, formats, names)):
            found[name] = f"{fmt}: {why}"
    return found


def folds_of(loaded: Loaded, formats: Mapping[str, Format], scales: Mapping[str, Tensor]) -> Folds:
    """What folding changes in the checkpoint.

    Args:
        loaded: the model.
        formats: the recipe; `why_not_folded` has nothing against it.
        scales: ``s`` by layer, float32 ``[in]``, as measured.
    """
    network, checkpoint = loaded.network, loaded.opened.checkpoint
    names = _Names(loaded)
    dtype: torch.dtype = getattr(torch, checkpoint.dtype)
    given: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    groups = fold_groups(network) if scales else {}
    for group in dict.fromkeys(groups[name] for name, fmt in formats.items() if folds(fmt)):
        scale = scales[group.layers[0]]
        given |= dict.fromkeys(group.layers, scale)
        if group.kind == "norm":
            parts = {key: names.one(f"{group.absorber}.{key}") for key in ("weight", "bias")}
            read = {key: checkpoint.read(at).to(torch.float32) for key, at in parts.items() if at}
            on_disk = dataclasses.replace(group, weight=read["weight"], bias=read.get("bias"))
            for key, value in absorbed(network, on_disk, scale, dtype).items():
                at = parts[key.rpartition(".")[2]]
                tensors[at] = value.to(getattr(torch, checkpoint.tensors[at].dtype))
            continue
        assert group.channels is not None
        layer = network.layers[group.absorber]
        factor = torch.ones(layer.shape[-2])
        factor[group.channels.cpu()] = 1 / scale
        rows[group.absorber] = factor
        if at := names.one(f"{layer.module}.bias"):
            bias = checkpoint.read(at)
            tensors[at] = (bias.to(torch.float32) * factor).to(bias.dtype)
    return Folds(given, rows, tensors)


def _why_not(
    loaded: Loaded, group: FoldGroup, name: str, formats: Mapping[str, Format], names: _Names
) -> str:
    if group.why_not:
        return f"{group.why_not}, so nothing absorbs its scale"
    for other in group.layers:
        held = str(formats.get(other, KEPT))
        if held != str(formats[name]):
            return (
                f"{other} is given the same input, which has one scale for all, and its format is "
                f"{held}: give both the same"
            )
    if group.kind == "norm":
        return names.why_not(f"{group.absorber}.weight") or (
            names.why_not(f"{group.absorber}.bias") if group.bias is not None else ""
        )
    absorber = loaded.network.layers[group.absorber]
    if len(absorber.modules) > 1:
        return f"several blocks share {absorber.name}, which would absorb its scale"
    if absorber.name not in loaded.rows:
        return f"{absorber.name}, which would absorb its scale, is a part of a tensor on disk"
    if names.inside(f"{absorber.module}_bias"):
        return f"{absorber.name}, which would absorb its scale, has biases of experts"
    fmt = formats.get(absorber.name)
    why = None if fmt is None else why_not_divided(fmt)
    return f"{absorber.name} absorbs its scale, and {why}" if why else ""


class _Names:
    """Tensors on disk by their keys in the model."""

    def __init__(self, loaded: Loaded) -> None:
        self._made_from = join_names(loaded.network.model, loaded.opened.checkpoint.tensors)
        self._tensors = loaded.opened.checkpoint.tensors
        used: dict[str, int] = {}
        for sources in self._made_from.values():
            for source in sources:
                used[source] = used.get(source, 0) + 1
        self._several = {source for source, count in used.items() if count > 1}

    def inside(self, key: str) -> bool:
        """Whether the model has it."""
        return key in self._made_from

    def one(self, key: str) -> str:
        """The tensor that is this key's; empty where the model has none."""
        return self._made_from[key][0] if self.inside(key) else ""

    def why_not(self, key: str) -> str:
        """Why there is no tensor that is this key's alone; empty if there is."""
        sources = self._made_from.get(key, ())
        if len(sources) != 1 or sources[0] in self._several:
            return f"{key}, which would absorb its scale, is no tensor of its own on disk"
        dtype = self._tensors[sources[0]].dtype
        if dtype not in ("float32", "float16", "bfloat16"):
            return f"{sources[0]}, which would absorb its scale, is stored in {dtype}"
        return ""
