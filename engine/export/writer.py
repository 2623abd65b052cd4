"""The writing half of a target, which needs torch, and what all targets share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from engine.checkpoint import Checkpoint, DiskLayer
from engine.export.folds import Folds
from engine.export.target import target_named
from engine.formats.grammar import Format
from engine.plugins import resolve
from engine.quant.methods.gptq import Solved
from engine.quant.stored import StoredWeight

OnProgress: TypeAlias = Callable[[int, int, str], None]
"""Called with bytes written, total bytes, and the current tensor; raising abandons the export."""
Codes: TypeAlias = StoredWeight | Solved
"""The stored form of a quantised layer: rounded to nearest, or solved."""
CodesOf: TypeAlias = Callable[[DiskLayer, Format], Codes | None]
"""Codes of a layer from calibration; None if they are to be computed while writing."""


@dataclass(frozen=True)
class Exported:
    """A checkpoint, or a file for another tool, that was written."""

    folder: Path
    """The folder, or the file."""
    bytes: int
    """Bytes of all tensors, or of the file."""
    quantised: tuple[str, ...]
    """Layers stored as codes, or that the file quantises."""
    notes: tuple[str, ...]
    """Sentences about anything unexpected."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The parameters of an export."""

    checkpoint: Checkpoint
    """The checkpoint; not quantised."""
    recipe: Mapping[str, str]
    """Formats by layer, named as by `list_layers`; other layers are kept."""
    out: Path
    scale_dtype: torch.dtype | None = None
    """The dtype that scales are stored in; `scale_dtype_for` if None."""
    overwrite: bool = False
    """Whether an existing export in ``out`` may be replaced."""
    device: str | torch.device = "cpu"
    """Where codes are computed."""
    trust_remote_code: bool = False
    """Whether the checkpoint's Python code may run, to list its modules."""
    check: bool = False
    """Whether the program that the files are for loads them before they count as written."""
    solved: CodesOf = lambda _layer, _format: None
    """Called for every quantised layer when it is written: codes from calibration go into the file
    as they were measured. With scales in ``scale_dtype``, on any device. Must return those of
    layers that need calibration."""
    folds: Folds = field(default_factory=Folds)
    """Scales that ``+awq`` and ``+smooth`` fold into the model. Must have those of all layers in
    such formats."""
    card: str = ""
    """The model card of a folder, ``README.md``; empty for none."""
    on_progress: OnProgress = lambda _done, _total, _tensor: None
    """Called with the progress."""


@runtime_checkable
class Writer(Protocol):
    """Writes the files of one target."""

    def check(self, request: Request) -> None:
        """Raise at once what `write` would raise, before anything is calibrated.

        Raises:
            NotExportable: some layers cannot be written; names all of them, with reasons.
            UsageError: an unknown layer, or ``out`` exists.
            FormatError: a format that does not parse.
            CheckpointError: the checkpoint cannot be read, or is already quantised.
            EngineError: ``out`` cannot be written to.
        """
        ...

    def write(self, request: Request) -> Exported:
        """Write the files: complete when this returns, removed on failure.

        Raises:
            FormatError: a scale overflows.
            EngineError: the disk is too small, or cannot be written to; and as `check`.
        """
        ...


def writer_of(target: str) -> Writer:
    """The writer of a target.

    Raises:
        UsageError: there is no such target.
    """
    declared = target_named(target)
    written = declared.writer
    found = resolve(written) if isinstance(written, str) else written()
    if declared.words is not None and callable(found):
        found = found(declared)
    if not isinstance(found, Writer):
        raise TypeError(f"{written!r} is not an engine.export.writer.Writer, but {found!r}")
    return found
