"""Readers: how a layout of quantised weights is recognised and read, and their registry."""

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
    """A weight as the model loads it, made of several tensors on disk."""

    name: str
    names: tuple[str, ...]
    """The tensors it is made of: codes and scales."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Reader:
    """One layout of quantised weights.

    If a layout is recognised but cannot be read, `read` and all that follows are None or empty.
    """

    name: str
    """Its name in messages: ``fp8``, ``mxfp4``."""
    recognises: Callable[[Checkpoint, TensorInfo], bool]
    """Whether a tensor holds codes in this layout."""
    methods: tuple[str, ...] = ()
    """The ``quant_method`` values of configs that use this layout for some or all weights."""
    scales: Callable[[Checkpoint, tuple[TensorInfo, ...]], tuple[str, ...]] = lambda _c, _t: ()
    """The tensor of scales for each tensor of codes; empty if any has no matching one."""
    read: Callable[[Checkpoint, str, str, int | None], Tensor] | None = None
    """Dequantise codes and scales, by name, to float32 ``[.., out, in]``; with the number of an
    expert only that one, ``[1, out, in]``."""
    layer: Callable[[TensorInfo], tuple[str, tuple[int, ...]]] | None = None
    """Name and shape ``[experts, out, in]`` of the layer for a tensor of codes; None if codes have
    the name and the shape of their weight."""
    joined: Callable[[Checkpoint], Iterator[Joined]] = lambda _: iter(())
    """The weights of a whole checkpoint, as transformers would find them on disk."""
    bare: bool = False
    """Whether codes without scales are plain numbers rather than unreadable."""
    unused: tuple[str, ...] = ()
    """Name suffixes of tensors that no model loads, such as scales of activations."""


_READERS: dict[str, Reader] = {}


def register_reader(reader: Reader) -> None:
    """Register a layout.

    Raises:
        ValueError: a reader with this name exists.
    """
    if reader.name in _READERS:
        raise ValueError(f"there is a reader of {reader.name!r} already")
    _READERS[reader.name] = reader


def readers() -> list[Reader]:
    """All layouts, readable ones first."""
    # By name: those modules import this one.
    importlib.import_module("engine.checkpoint.quantised")
    load_plugins()
    return sorted(_READERS.values(), key=lambda reader: reader.read is None)


def reader_named(name: str) -> Reader:
    """The layout with this name."""
    return next(reader for reader in readers() if reader.name == name)


def readable_methods() -> frozenset[str]:
    """The values of ``quant_method`` whose weights can be read, at least in part."""
    return frozenset(method for reader in readers() if reader.read for method in reader.methods)


def reader_of(checkpoint: Checkpoint, tensor: TensorInfo) -> Reader | None:
    """The layout of a tensor of codes that can be read; None for any other tensor."""
    for reader in readers():
        if reader.recognises(checkpoint, tensor):
            return reader if reader.scales(checkpoint, (tensor,)) else None
    return None


def scales_of(checkpoint: Checkpoint, parts: tuple[TensorInfo, ...]) -> tuple[str, tuple[str, ...]]:
    """The layout of a layer's parts, by name, and the scales of each; or empty."""
    for reader in readers():
        if reader.recognises(checkpoint, parts[0]) and (found := reader.scales(checkpoint, parts)):
            return reader.name, found
    return "", ()


def readers_of(checkpoint: Checkpoint) -> list[Reader]:
    """The layouts of a checkpoint's weights; empty if none are quantised.

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
    """Raise if weights are packed in a layout that is recognised but cannot be read.

    Raises:
        CheckpointError: names the quantiser and a tensor that it packed.
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
    """The quantiser named in ``config.json``; None if it names none."""
    return quantization_config(checkpoint).get("quant_method")


def quantization_config(checkpoint: Checkpoint) -> dict[str, object]:
    """The ``quantization_config`` of ``config.json``; empty if there is none."""
    config = checkpoint.config.get("quantization_config")
    return config if isinstance(config, dict) else {}
