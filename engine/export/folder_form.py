"""A form of quantised checkpoint: how its layers are stored, and what its config says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, DiskLayer
from engine.export.shards import Slot
from engine.export.target import Expresses
from engine.export.tensor_groups import TensorGroup
from engine.formats.grammar import Format
from engine.quant.methods.gptq import Solved
from engine.quant.stored import StoredWeight

Config = Callable[[Mapping[str, Format], Sequence[str], str, Mapping[str, Mapping[str, Any]]], Any]


OneExpert = Callable[[DiskLayer, Format, int], StoredWeight]
"""The stored form ``[out, in]`` of one expert of a layer."""


@dataclass(frozen=True)
class ExpertsForm:
    """How experts are stored that are one tensor in the model and one matrix each on disk."""

    why_not: Callable[[Format], str | None]
    why_not_together: Callable[
        [Mapping[str, DiskLayer], Mapping[str, Format], frozenset[str]], dict[str, str]
    ]
    """Layers that cannot be stored for what the others are, with reasons."""
    group: Callable[[Checkpoint, DiskLayer, str, Format, torch.dtype, OneExpert], TensorGroup]
    """One matrix of a layer's experts."""
    targets: Callable[[DiskLayer], list[str]]
    """The modules of a layer's experts, as the config names them."""
    plain: Mapping[str, Mapping[str, Any]]
    """Further groups of the config, so that plain experts are read beside other layers' codes."""


@dataclass(frozen=True)
class FolderForm:
    """What differs between the quantised checkpoints that are folders of safetensors."""

    name: str
    """In errors."""
    why_not: Expresses
    slots: Callable[[str, Format, tuple[int, ...], torch.dtype], dict[str, Slot]]
    """The slots of a weight ``[out, in]`` by name, from the layer's name on disk, its format, its
    shape and the dtype of scales."""
    tensors: Callable[[str, Format, StoredWeight | Solved], dict[str, Tensor]]
    """Those tensors, from a weight's stored form."""
    config: Config
    """The ``quantization_config``, from formats by module, the other linear modules, the name of
    the head, and further groups of compressed-tensors."""
    notes: Callable[[Mapping[str, Format]], list[str]] = lambda _codes: []
    """Sentences about the formats of a recipe."""
    experts: ExpertsForm | None = None
    """How experts that transformers merges are stored; None if they cannot be."""
    tool: str = "compressed-tensors"
    """What quantises the modules of such a checkpoint, in errors."""
