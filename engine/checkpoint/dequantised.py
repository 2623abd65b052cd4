"""A checkpoint as its dequantised self: weights by the model's names, not codes and scales."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint, open_stored
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.quantised.reader import readers
from engine.checkpoint.unread import refuse_unread
from engine.checkpoint.weight import QuantisedWeight
from engine.errors import CheckpointError


def open_folder(folder: Path, *, follow_links: bool = False) -> Checkpoint:
    """Open the checkpoint in ``folder``, reading ``config.json`` and the headers of its weights.

    Looks for weights in the order of transformers: ``model.safetensors``, the shards of
    ``model.safetensors.index.json``, ``pytorch_model.bin``, the shards of its index. Weights that
    are stored quantised as several tensors have the name and shape of the weight.

    Args:
        folder: as saved by transformers, or a snapshot in the hub's cache.
        follow_links: whether its files may be links out of it.

    Raises:
        CheckpointError: something is missing, truncated, contradictory or unsafe; names it.
    """
    return dequantised(open_stored(folder, follow_links=follow_links))


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, with every weight in place of the tensors that it is made of.

    Raises:
        CheckpointError: codes lack a tensor that they need, or one does not fit; or they are in a
            layout that is known and not read.
    """
    if all(tensor.dtype in _PLAIN for tensor in checkpoint.tensors.values()):
        return checkpoint
    refuse_unread(checkpoint)
    found: dict[str, QuantisedWeight] = {}
    owner: dict[str, str] = {}
    for reader in readers():
        for weight in reader.weights(checkpoint) if reader.weights else ():
            if any(piece in owner for piece in weight.pieces):
                continue  # another layout has read it
            if weight.name in found or _is_other(checkpoint, weight):
                raise CheckpointError(
                    f"{checkpoint.tensors[weight.pieces[0]].file} stores {weight.name!r} twice, "
                    f"plain and as {weight.pieces[0]!r}; remove one of them"
                )
            found[weight.name] = replace(weight, places=_places(checkpoint, weight))
            owner |= dict.fromkeys(weight.pieces, weight.name)
    if not found:
        return checkpoint
    tensors: dict[str, TensorInfo] = {}
    for name, tensor in checkpoint.tensors.items():
        if (weight_name := owner.get(name)) is None:
            tensors[name] = tensor
        elif weight_name not in tensors:
            tensors[weight_name] = _listed(checkpoint, found[weight_name])
    return replace(checkpoint, tensors=tensors, quantised=found)


_PLAIN = ("float16", "bfloat16", "float32", "float64")
"""Every layout has a tensor in another dtype."""


def _places(checkpoint: Checkpoint, weight: QuantisedWeight) -> tuple[tuple[Path, int, int], ...]:
    tensors = (checkpoint.tensors[piece] for piece in weight.pieces)
    return tuple((tensor.file, tensor.start, tensor.bytes) for tensor in tensors)


def _is_other(checkpoint: Checkpoint, weight: QuantisedWeight) -> bool:
    return weight.name in checkpoint.tensors and weight.name not in weight.pieces


def _listed(checkpoint: Checkpoint, weight: QuantisedWeight) -> TensorInfo:
    """A weight as a tensor, in the file of its codes, with the bytes of all its pieces."""
    size = sum(checkpoint.tensors[piece].bytes for piece in weight.pieces)
    file = checkpoint.tensors[weight.pieces[0]].file
    return TensorInfo(weight.name, weight.dtype, weight.shape, file, 0, size)


def without_quantisation(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what it says of quantisation: that of the plain model."""
    plain = {key: value for key, value in config.items() if key not in _DECLARATIONS}
    text = plain.get("text_config")
    if isinstance(text, dict):
        plain["text_config"] = without_quantisation(text)
    return plain


_DECLARATIONS = ("quantization_config", "quantization", "compression_config")
