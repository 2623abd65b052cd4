"""Readers: how a layout of quantised weights is recognised and read, and their registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.packed.declared import quantization_config
from engine.checkpoint.weight import Codes, QuantisedWeight
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

    A layout whose codes have one scale and the name of their weight declares `scale` and `read`;
    any other finds its `weights` from all tensors together. One that is recognised but cannot be
    read declares neither.
    """

    name: str
    """Its name in messages: ``fp8``, ``mxfp4``."""
    recognises: Callable[[Checkpoint, TensorInfo], bool]
    """Whether a tensor holds codes in this layout."""
    methods: tuple[str, ...] = ()
    """The ``quant_method`` values of configs that use this layout for some or all weights."""
    scale: tuple[tuple[str, str], ...] = ()
    """How the scale of codes is named: the ending of the codes' name, and what takes its place.
    Every tensor of codes must have exactly one: `engine.checkpoint.companions` checks that."""
    why_unlike: Callable[[Checkpoint, TensorInfo, TensorInfo], str | None] = lambda *_: None
    """Why codes and their scale do not belong together, such as their shapes; None if they do."""
    read: Callable[[Checkpoint, str, str, int | None], Tensor] | None = None
    """Dequantise codes and scales, by name, to float32 ``[.., out, in]``; with the number of an
    expert only that one, ``[1, out, in]``."""
    codes: Callable[[Checkpoint, str, str], Iterator[Codes]] | None = None
    """Codes and scales of a tensor of codes and its scale, by name, in parts; where ``read`` is."""
    layer: Callable[[TensorInfo], tuple[str, tuple[int, ...]]] | None = None
    """Name and shape ``[experts, out, in]`` of the layer for a tensor of codes; None if codes have
    the name and the shape of their weight."""
    joined: Callable[[Checkpoint], Iterator[Joined]] = lambda _: iter(())
    """The weights of a whole checkpoint, as transformers would find them on disk."""
    why_not_plain: Callable[[Tensor], str | None] | None = None
    """If codes are plain numbers where neither the config nor any scale says otherwise: why these
    cannot be. None if codes never are."""
    weights: Callable[[Checkpoint], Iterable[QuantisedWeight]] | None = None
    """Find the weights of a checkpoint in this layout, from headers and config; those that are not
    in it are left alone. A `CheckpointError` says which tensor lacks what, or cannot be."""
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
    return frozenset(
        method for reader in readers() if reader.read or reader.weights for method in reader.methods
    )


def scale_names(reader: Reader, codes: str) -> list[str]:
    """The names that the scale of a tensor of codes may have."""
    return [
        codes.removesuffix(ending) + instead
        for ending, instead in reader.scale
        if codes.endswith(ending)
    ]


def scale_of(checkpoint: Checkpoint, reader: Reader, codes: str) -> str:
    """The scale of a tensor of codes; empty if it is absent."""
    return next((name for name in scale_names(reader, codes) if name in checkpoint.tensors), "")


def recogniser(
    checkpoint: Checkpoint, tensor: TensorInfo, known: Sequence[Reader] = ()
) -> Reader | None:
    """The layout that a tensor holds codes of; None if it holds plain numbers.

    Args:
        known: all layouts, for a loop over many tensors.
    """
    found = known or readers()
    return next((each for each in found if each.recognises(checkpoint, tensor)), None)


def reader_of(checkpoint: Checkpoint, tensor: TensorInfo) -> Reader | None:
    """The layout of a tensor of codes that can be read; None for any other tensor."""
    reader = recogniser(checkpoint, tensor)
    return reader if reader and scale_of(checkpoint, reader, tensor.name) else None


def scales_of(checkpoint: Checkpoint, parts: tuple[TensorInfo, ...]) -> tuple[str, tuple[str, ...]]:
    """The layout of a layer's parts, by name, and the scales of each; or empty."""
    reader = reader_of(checkpoint, parts[0])
    if reader is None:
        return "", ()
    return reader.name, tuple(scale_of(checkpoint, reader, part.name) for part in parts)


def not_finite(checkpoint: Checkpoint, scale: str) -> str:
    """What is said of a scale that holds NaN or infinity."""
    return (
        f"{checkpoint.tensors[scale].file} stores {scale!r}, a scale, with values that are not "
        "finite: no weight can be computed from it; download or save it again"
    )


def quant_method(checkpoint: Checkpoint) -> object:
    """The quantiser named in ``config.json``; None if it names none."""
    return quantization_config(checkpoint).get("quant_method")
