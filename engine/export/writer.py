"""What writes an export: the half of a target that needs torch, and what all of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from engine.checkpoint import Checkpoint, DiskLayer
from engine.errors import InfeasibleError
from engine.export.target import target_named
from engine.formats.grammar import Format
from engine.plugins import resolve
from engine.quant.methods.gptq import Solved
from engine.quant.stored import StoredWeight

_MOST_NAMED = 5

OnProgress: TypeAlias = Callable[[int, int, str], None]
"""Told bytes written, bytes in all, and the tensor in hand; raising there abandons the export."""
Codes: TypeAlias = StoredWeight | Solved
"""What is written of a quantised layer: rounded to nearest, or solved."""
CodesOf: TypeAlias = Callable[[DiskLayer, Format], Codes | None]
"""The codes of a layer that were found already, or None where they are to be found here."""


class NotExportable(InfeasibleError):
    """Layers that a target, or what loads its files, cannot hold as the recipe asks."""

    def __init__(self, refused: Mapping[str, str], form: str) -> None:
        self.refused = dict(refused)
        """Why, by layer."""
        alike: dict[str, list[str]] = defaultdict(list)
        for layer, why in refused.items():
            alike[why].append(layer)
        lines = [f"  {some_of(layers)}: {why}" for why, layers in alike.items()]
        count = f"{len(refused)} layer{'s' if len(refused) > 1 else ''}"
        super().__init__(
            f"{count} of this recipe cannot be written in the form of {form}; "
            "give them another format or keep them\n" + "\n".join(lines)
        )


@dataclass(frozen=True)
class Exported:
    """A checkpoint that was written."""

    folder: Path
    bytes: int
    """Of all tensors."""
    quantised: tuple[str, ...]
    """Layers that are stored as codes."""
    notes: tuple[str, ...]
    """What is not as one might expect, in sentences."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an export is asked for."""

    checkpoint: Checkpoint
    """Not quantised already."""
    recipe: Mapping[str, str]
    """Formats by layer, as `list_layers` names them; layers that are not named are kept."""
    out: Path
    scale_dtype: torch.dtype | None = None
    """The dtype that scales are stored in; that of `scale_dtype_for` if None."""
    overwrite: bool = False
    """Whether an export in ``out`` may be replaced."""
    device: str | torch.device = "cpu"
    """Where codes are found."""
    trust_remote_code: bool = False
    """Whether Python code of the checkpoint may be run to learn its modules."""
    solved: CodesOf = lambda _layer, _format: None
    """Asked for the stored form of every quantised layer, as it comes to be written: what
    calibration found goes into the file as it was measured. With scales in ``scale_dtype``, on any
    device. What calibrates has to be among it."""
    on_progress: OnProgress = lambda _done, _total, _tensor: None
    """Told how far it has come."""


@runtime_checkable
class Writer(Protocol):
    """Writes the files of one target."""

    def check(self, request: Request) -> None:
        """Refuse at once what `write` would refuse, before anything is calibrated for it.

        Raises:
            NotExportable: layers that cannot be written, all of them, with reasons.
            UsageError: an unknown layer, or ``out`` is there already.
            FormatError: a format that does not parse.
            CheckpointError: the checkpoint cannot be read, or is quantised already.
            EngineError: ``out`` cannot be written to.
        """
        ...

    def write(self, request: Request) -> Exported:
        """Write it; what is there when this returns is whole, and on failure nothing is there.

        Raises:
            FormatError: a scale that overflows.
            EngineError: the disk is too small, or cannot be written; and as `check`.
        """
        ...


def writer_of(target: str) -> Writer:
    """What writes a target.

    Raises:
        UsageError: there is no such target.
    """
    declared = target_named(target).writer
    found = resolve(declared) if isinstance(declared, str) else declared()
    if not isinstance(found, Writer):
        raise TypeError(f"{declared!r} is no engine.export.writer.Writer, but {found!r}")
    return found


def some_of(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
