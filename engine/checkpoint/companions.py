"""Checks that codes have their scales, and scales their codes, before any weight is read.

A weight that is stored quantised means nothing without its companion: read alone, its codes would
pass for numbers. Every layout declares how a scale is named (`Reader.scale`); every tensor is
checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.headers import TensorInfo
from engine.checkpoint.packed.declared import declared_config, rotated_when_run
from engine.checkpoint.quantised.reader import (
    Reader,
    quant_method,
    readers,
    recogniser,
    scale_names,
    scale_of,
)
from engine.errors import CheckpointError, few

if TYPE_CHECKING:
    from torch import Tensor


def readers_of(checkpoint: Checkpoint) -> list[Reader]:
    """The layouts of a checkpoint's weights; empty if none are quantised.

    Raises:
        CheckpointError: see `check_companions`.
    """
    check_companions(checkpoint)
    known = readers()
    found = [recogniser(checkpoint, tensor, known) for tensor in checkpoint.tensors.values()]
    return [reader for reader in known if reader in found]


def stored_note(checkpoint: Checkpoint) -> str | None:
    """A sentence about a checkpoint whose weights are quantised; None if none are.

    Raises:
        CheckpointError: see `check_companions`.
    """
    names = layouts_of(checkpoint)
    if not names:
        return None
    note = f"stored in {' and '.join(names)}, dequantised as reference"
    if rotated_when_run(declared_config(checkpoint)):
        note += "; activations that its configuration has rotated are not: its outputs are noise"
    return note


def layouts_of(checkpoint: Checkpoint) -> list[str]:
    """The names of the layouts of a checkpoint's quantised weights.

    Raises:
        CheckpointError: see `check_companions`.
    """
    layouts = [weight.layout for weight in checkpoint.quantised.values()]
    of_one = [] if plain_codes(checkpoint) else readers_of(checkpoint)
    whole = [checkpoint.dequantised] if checkpoint.dequantised else []
    return list(dict.fromkeys([*whole, *layouts, *(reader.name for reader in of_one)]))


def check_companions(checkpoint: Checkpoint) -> None:
    """Check every tensor of a checkpoint that holds codes, and every scale.

    Raises:
        CheckpointError: names a tensor of codes in a layout that is not read, or without its
            scale, or with one that does not fit; or a scale without codes.
    """
    known = readers()
    _refuse_stale_config(checkpoint, known)
    codes: list[tuple[Reader, TensorInfo]] = []
    for tensor in checkpoint.tensors.values():
        reader = recogniser(checkpoint, tensor, known)
        if reader is not None and reader.read is None:
            raise CheckpointError(f"{_packed(checkpoint, tensor)}; {_INSTEAD}")
        if reader is not None:
            codes.append((reader, tensor))
    plain = set(plain_codes(checkpoint))
    for reader, tensor in codes:
        if tensor.name not in plain:
            _check_scale(checkpoint, reader, tensor)
    _check_orphans(checkpoint)


def _refuse_stale_config(checkpoint: Checkpoint, known: Sequence[Reader]) -> None:
    """Refuse a config that names a quantiser where no weight is quantised, or in a way unknown."""
    method = quant_method(checkpoint)
    tensors = checkpoint.tensors.values()
    given = checkpoint.config.get("quantization_config")
    if given is not None and not isinstance(given, dict):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has a quantization_config that is a "
            f"{type(given).__name__}, not an object: how its weights are stored is not known"
        )
    if method is None or checkpoint.quantised:
        return
    if any(recogniser(checkpoint, tensor, known) for tensor in tensors):
        return
    file = checkpoint.folder / "config.json"
    if any("int" in tensor.dtype and len(tensor.shape) > 1 for tensor in tensors):
        raise CheckpointError(
            f"{file}: this checkpoint is already quantised, in a way that qtui does not read "
            f"(quant_method {method!r}); {_INSTEAD}"
        )
    raise CheckpointError(
        f"{file} has a quantization_config (quant_method {method!r}), but every weight is stored "
        f"plain, in {checkpoint.dtype}: if these are the original weights, remove "
        "quantization_config from config.json; else download the quantised ones again"
    )


def plain_codes(checkpoint: Checkpoint) -> list[str]:
    """Tensors in a dtype of codes that hold plain numbers, since nothing says otherwise.

    That is: the config names no quantiser, and no tensor in this layout has a scale.
    """
    if quant_method(checkpoint) is not None:
        return []
    found = []
    for reader in readers():
        if reader.why_not_plain is None:
            continue
        names = [t.name for t in checkpoint.tensors.values() if reader.recognises(checkpoint, t)]
        if not any(scale_of(checkpoint, reader, name) for name in names):
            found += names
    return found


def plain_note(checkpoint: Checkpoint) -> str:
    """A sentence about weights that look like codes and are taken for numbers; empty if none."""
    names = plain_codes(checkpoint)
    if not names:
        return ""
    dtypes = " and ".join(sorted({checkpoint.tensors[name].dtype for name in names}))
    return (
        f"{len(names)} weights are stored in {dtypes} with neither a scale nor a "
        f"quantization_config, and are read as plain numbers: {few(names)}"
    )


def read_plain(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """The same ``tensor``, called ``name``, unless it cannot hold the plain numbers it seems to.

    Raises:
        CheckpointError: they can only be codes.
    """
    info = checkpoint.tensors[name]
    reader = recogniser(checkpoint, info)
    why = reader.why_not_plain(tensor) if reader and reader.why_not_plain else None
    if why is not None:
        raise CheckpointError(f"{info.file} stores {name!r} in {info.dtype} {why}; {_INSTEAD}")
    return tensor


_INSTEAD = "open the checkpoint it was made from"


def _packed(checkpoint: Checkpoint, tensor: TensorInfo) -> str:
    reader = recogniser(checkpoint, tensor)
    by = quant_method(checkpoint) or (reader.name if reader else "another tool")
    return f"{tensor.file} stores {tensor.name!r} packed in {tensor.dtype} by {by}"


def _check_scale(checkpoint: Checkpoint, reader: Reader, codes: TensorInfo) -> None:
    wanted = scale_names(reader, codes.name)
    found = [name for name in wanted if name in checkpoint.tensors]
    if not found:
        raise CheckpointError(
            f"{codes.file} stores {codes.name!r} in {reader.name} ({codes.dtype}) without its "
            f"scale: no {' or '.join(repr(name) for name in wanted)} in {checkpoint.folder}"
            f"{_beside(checkpoint, codes)}; download or save it again"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{codes.file} stores {codes.name!r} with {len(found)} scales, {few(found)}, of which "
            "only one can hold; save it again"
        )
    scale = checkpoint.tensors[found[0]]
    if (why := reader.why_unlike(checkpoint, codes, scale)) is not None:
        raise CheckpointError(
            f"{_packed(checkpoint, codes)} with {scale.name!r}, but {why}; {_INSTEAD}"
        )


def _beside(checkpoint: Checkpoint, codes: TensorInfo) -> str:
    """Which other tensors stand beside codes, for a message: they may be another tool's scales."""
    home = codes.name.rpartition(".")[0] + "."
    others = [name for name in checkpoint.tensors if name.startswith(home) and name != codes.name]
    return f", only {few(others)}" if home != "." and others else ""


def _check_orphans(checkpoint: Checkpoint) -> None:
    """Refuse scales whose codes are missing or plain: what they belong to is unknown."""
    for reader in readers():
        for ending, instead in reader.scale:
            for scale in checkpoint.tensors.values():
                if not scale.name.endswith(instead):
                    continue
                name = scale.name.removesuffix(instead) + ending
                if ending or name.endswith(".weight"):  # others have names like these
                    _check_codes(checkpoint, reader, scale, name)


def _check_codes(checkpoint: Checkpoint, reader: Reader, scale: TensorInfo, name: str) -> None:
    codes = checkpoint.tensors.get(name)
    if codes is None:
        raise CheckpointError(
            f"{scale.file} stores the scale {scale.name!r}, but {checkpoint.folder} has no "
            f"{name!r}; finish the download or save it again"
        )
    if recogniser(checkpoint, codes) is None:
        raise CheckpointError(
            f"{scale.file} stores the scale {scale.name!r}, but {name!r} is stored plain, in "
            f"{codes.dtype}, not in {reader.name}; save one of the two without the other, or "
            f"{_INSTEAD}"
        )
