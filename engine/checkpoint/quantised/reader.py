"""How a layout of quantised weights is recognised and read, and the registry of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.errors import CheckpointError
from engine.plugins import load_plugins

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """A weight as a model looks for it, made of several tensors on disk."""

    name: str
    names: tuple[str, ...]
    """The tensors it is made of: codes and scales."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Reader:
    """One layout of quantised weights.

    `read` is None of a layout that is recognised and cannot be read; nothing more is then given.
    """

    name: str
    """What it is called in sentences: ``fp8``, ``mxfp4``."""
    recognises: Callable[[Checkpoint, TensorInfo], bool]
    """Whether a tensor holds codes in this layout."""
    methods: tuple[str, ...] = ()
    """The ``quant_method`` of configs under which weights lie so, or some of them."""
    scales: Callable[[Checkpoint, tuple[TensorInfo, ...]], tuple[str, ...]] = lambda _c, _t: ()
    """The tensor of scales beside each tensor of codes; none if any has none that fits."""
    read: Callable[[Checkpoint, str, str, int | None], Tensor] | None = None
    """What codes and scales stand for, by their names, float32 ``[.., out, in]``; with the number
    of an expert that one alone, ``[1, out, in]``."""
    layer: Callable[[TensorInfo], tuple[str, tuple[int, ...]]] | None = None
    """Name and shape ``[experts, out, in]`` of the layer that a tensor of codes stands for; None
    where codes have the name and the shape of their weight."""
    joined: Callable[[Checkpoint], Iterator[Joined]] = lambda _: iter(())
    """The weights of a whole checkpoint, as transformers would look for them on disk."""
    bare: bool = False
    """Whether codes without scales are numbers as they are, not something that cannot be read."""
    unused: tuple[str, ...] = ()
    """Ends of the names of tensors that no model looks for, such as scales of activations."""


_READERS: dict[str, Reader] = {}


def register_reader(reader: Reader) -> None:
    """Make a layout known.

    Raises:
        ValueError: there is one of that name already.
    """
    if reader.name in _READERS:
        raise ValueError(f"there is a reader of {reader.name!r} already")
    _READERS[reader.name] = reader


def readers() -> list[Reader]:
    """All layouts that are recognised, first those that can be read."""
    # By name: each of those modules is made of what stands in this one.
    importlib.import_module("engine.checkpoint.quantised")
    load_plugins()
    return sorted(_READERS.values(), key=lambda reader: reader.read is None)


def reader_named(name: str) -> Reader:
    """The layout of that name."""
    return next(reader for reader in readers() if reader.name == name)


def readable_methods() -> frozenset[str]:
    """The values of ``quant_method`` under which weights, or some of them, can be read."""
    return frozenset(method for reader in readers() if reader.read for method in reader.methods)


def reader_of(checkpoint: Checkpoint, tensor: TensorInfo) -> Reader | None:
    """The layout of a tensor of codes that can be read; None of any other tensor."""
    for reader in readers():
        if reader.recognises(checkpoint, tensor):
            return reader if reader.scales(checkpoint, (tensor,)) else None
    return None


def scales_of(checkpoint: Checkpoint, parts: tuple[TensorInfo, ...]) -> tuple[str, tuple[str, ...]]:
    """The layout of parts that make a layer, by name, and the scales beside each; or nothing."""
    for reader in readers():
        if reader.recognises(checkpoint, parts[0]) and (found := reader.scales(checkpoint, parts)):
            return reader.name, found
    return "", ()


def readers_of(checkpoint: Checkpoint) -> list[Reader]:
    """The layouts of a checkpoint's weights, or of some; none where all are as they were trained.

    Raises:
        CheckpointError: weights are packed in a layout that cannot be read.
    """
    refuse_packed(checkpoint)
    tensors = checkpoint.tensors.values()
    return [
        reader
        for reader in readers()
        if any(reader.recognises(checkpoint, tensor) for tensor in tensors)
    ]


def refuse_packed(checkpoint: Checkpoint) -> None:
    """Raise if weights are packed in a layout that is recognised and cannot be read.

    Raises:
        CheckpointError: naming the quantiser and a tensor that it packed.
    """
    known = readers()
    for name, tensor in checkpoint.tensors.items():
        reader = next((each for each in known if each.recognises(checkpoint, tensor)), None)
        if reader is None or reader.bare or reader.scales(checkpoint, (tensor,)):
            continue
        method = quant_method(checkpoint)
        raise CheckpointError(
            f"{tensor.file} stores {name!r} packed in {tensor.dtype}"
            f"{f' by {method}' if method else ''}; open the checkpoint it was made from"
        )


def quant_method(checkpoint: Checkpoint) -> object:
    """The quantiser that ``config.json`` names; None where it names none."""
    return quantization_config(checkpoint).get("quant_method")


def quantization_config(checkpoint: Checkpoint) -> dict[str, object]:
    """What ``config.json`` says of quantisation; empty where that is nothing."""
    config = checkpoint.config.get("quantization_config")
    return config if isinstance(config, dict) else {}
