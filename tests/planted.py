"""Tiny checkpoints with a planted fault: the same function, one layer that a format ruins.

In every group of a layer's inputs one channel is made 64 times larger, and what produces it as much
smaller, through an operation that commutes with the scale. The model computes what it did; a
format that rounds a group of weights by its largest leaves nothing of the others.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny

FACTOR = 64.0
"""A power of two: no weight is rounded by it."""

GROUP = 32
"""Inputs of a group; ``int4-g32`` is the format that is ruined."""

FORMAT = "int4-g32"

PLANTED = {
    "llama": "model.layers.1.mlp.down_proj",
    "opt": "model.decoder.layers.1.fc2",
    "gpt2": "transformer.h.1.attn.c_proj",
}
"""Architecture → the layer that is ruined."""


def plant(arch: str, folder: Path) -> str:
    """Write a checkpoint with a fault; returns the name of the layer that has it.

    ``llama``: ``up_proj`` feeds ``down_proj`` through a product. ``opt``: ``fc1`` feeds ``fc2``
    through a ReLU. ``gpt2``: values feed ``attn.c_proj`` through a weighted mean.
    """
    tiny.build(arch, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)

    def named(end: str) -> Tensor:
        (found,) = (tensor for name, tensor in tensors.items() if name.endswith(end))
        return found

    if arch == "llama":
        channels = slice(0, None, GROUP)
        named("layers.1.mlp.up_proj.weight")[channels] /= FACTOR
        named("layers.1.mlp.down_proj.weight")[:, channels] *= FACTOR
    elif arch == "opt":
        channels = slice(0, None, GROUP)
        named("layers.1.fc1.weight")[channels] /= FACTOR
        named("layers.1.fc1.bias")[channels] /= FACTOR
        named("layers.1.fc2.weight")[:, channels] *= FACTOR
    else:
        output = named("h.1.attn.c_proj.weight")  # [in, out]
        values = slice(2 * output.shape[0], None, GROUP)
        named("h.1.attn.c_attn.weight")[:, values] /= FACTOR
        named("h.1.attn.c_attn.bias")[values] /= FACTOR
        output[::GROUP] *= FACTOR
    save_file(tensors, path, metadata={"format": "pt"})
    return PLANTED[arch]
