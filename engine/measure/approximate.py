"""What a layer computes with in a format: the weight as the artefact would dequantise it."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from engine.checkpoint import read_layer
from engine.measure.account import Account
from engine.model.network import Held
from engine.quant import Format, dequantized
from engine.workspace import Workspace


def approximated(
    workspace: Workspace, layer: str, format: Format, account: Account
) -> Generator[None, None, Held]:
    """What a layer computes with in a format; yields while what it takes is being gathered.

    Raises:
        FormatError: as `approximation` does.
    """
    step = account.timed("quantize_s", lambda: approximation(workspace, layer, format))
    yield from ()
    return step()


def approximation(workspace: Workspace, layer: str, format: Format) -> Tensor:
    """``Ŵ`` of a layer in the network's dtype and on its device, oriented ``[out, in]``.

    Taken from the weights as stored, so that the dtype the network runs in never changes ``Ŵ``:
    only the cast at the end does.

    Raises:
        FormatError: if the format is not built, or cannot hold the layer.
        EngineError: if a scale overflows; the message names the layer.
    """
    network, _ = workspace.need_network()
    stored = _stored(workspace, layer)
    scale_dtype: torch.dtype = getattr(torch, workspace.scale_dtype)
    approx = dequantized(stored.to(network.device), format, scale_dtype, name=layer)
    return approx.to(network.dtype)


def _stored(workspace: Workspace, layer: str) -> Tensor:
    """The weight as stored; from the network where its dtype holds every stored value."""
    network, _ = workspace.need_network()
    weight = network.weight(layer)
    row = workspace.rows.get(layer)
    if row is None or row.dtype not in ("float32", "float16", "bfloat16"):
        return weight  # dequantised on loading: the network's values are the reference
    stored: torch.dtype = getattr(torch, row.dtype)
    if torch.promote_types(stored, weight.dtype) == weight.dtype:
        return weight
    read = read_layer(workspace.need_checkpoint(), row)
    return torch.nan_to_num(read, nan=0.0, posinf=0.0, neginf=0.0)
