"""Which rotations a layer of a finished checkpoint has, told from all that it holds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from engine.measure.compare.artefact import Artefact
from engine.measure.compare.explained import explanation
from engine.measure.compare.folded import of_norms
from engine.measure.compare.rotations import Turn, is_apart, turn_of
from engine.model.fold_groups import FoldGroup


def turned(
    artefact: Artefact,
    layer: str,
    weight: Tensor,
    stored: Tensor,
    group: FoldGroup | None,
    *,
    explained: bool | None = None,
) -> Turn | None:
    """The rotations of a layer that nothing simpler explains; None if there are none.

    Args:
        artefact: the finished checkpoint.
        layer: one that both have.
        weight: the original's, ``[…, out, in]``.
        stored: the finished checkpoint's.
        group: what is before the layer, where the model is loaded.
        explained: whether a mistake explains its error; None if that was not looked for.
    """
    if layer in artefact.turns:
        return artefact.turns[layer]
    found = None
    if is_apart(weight, stored):
        if explained is None:
            explained = explanation(weight, stored, artefact.heads(layer)) is not None
        found = None if explained else _turned(artefact, layer, weight, stored, group)
    if found is None or "input" not in found.kinds:
        artefact.turns[layer] = found
    return found


def _turned(
    artefact: Artefact, layer: str, weight: Tensor, stored: Tensor, group: FoldGroup | None
) -> Turn | None:
    kind = artefact.original.rows[layer].kind
    return turn_of(
        weight,
        stored,
        artefact.stream,
        rows=artefact.key_heads if kind == "v_proj" else 0,
        columns=artefact.query_heads if kind == "o_proj" else 0,
        scales=norm_scales(artefact, layer, group),
    )


def norm_scales(artefact: Artefact, layer: str, group: FoldGroup | None) -> Iterator[Tensor]:
    """Scales of a layer's columns that norms say, ``[in]`` each: of its own where that is known."""
    name = "" if group is None or group.kind != "norm" else f"{group.absorber}.weight"
    if group is None:
        yield from norms_beside(artefact, layer)
    elif group.weight is not None and name in artefact.checkpoint.tensors:
        now = artefact.checkpoint.read(name).float() + group.unit
        then = group.weight.float().cpu() + group.unit
        scale = of_norms(then, now) if now.shape == then.shape else None
        if scale is not None:
            yield scale


def norms_beside(artefact: Artefact, layer: str) -> Iterator[Tensor]:
    """What the norms of its block say, where no model tells which is before the layer."""
    row, theirs, ours = (
        artefact.original.rows[layer],
        artefact.original.checkpoint,
        artefact.checkpoint,
    )
    home, dot, _ = layer.partition(f".{row.block}.")
    for name, info in theirs.tensors.items():
        if not (dot and name.startswith(home + dot) and name.endswith(".weight")):
            continue
        if info.shape != (row.shape[-1],) or name not in ours.tensors:
            continue
        before, now = theirs.read(name).float(), ours.read(name).float()
        for unit in (0.0, 1.0) if before.shape == now.shape else ():  # Gemma adds 1
            if (scale := of_norms(before + unit, now + unit)) is not None:
                yield scale
