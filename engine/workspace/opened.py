"""An open checkpoint: its files, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer
from engine.errors import UsageError
from engine.store import keys
from engine.workspace.workspace import Workspace


@dataclass(eq=False)
class Opened:
    """The files of one checkpoint: all that jobs on weights need."""

    absent: ClassVar[str] = "no checkpoint is open"

    workspace: Workspace
    path: Path
    checkpoint: Checkpoint
    rows: dict[str, DiskLayer]
    """Layers by name; replaced as a whole if the loaded model names them differently."""
    demo: bool = False
    loads_model: bool = False
    """Whether the model is loaded too, once the files are open."""
    other_bytes: int = 0
    """Bytes of the checkpoint outside of layers."""
    code_sha256: str = ""
    """Hash of the code that came with the checkpoint, if it was trusted."""
    files: keys.Files = field(init=False)
    """The part of a fact's key for these files."""

    def __post_init__(self) -> None:
        self.files = keys.Files(self.checkpoint.fingerprint, self.code_sha256)

    @property
    def settings(self) -> p.Settings:
        """The session's settings."""
        return self.workspace.settings

    @property
    def scale_dtype(self) -> str:
        """16-bit dtype that stored scales are rounded to."""
        return "bfloat16" if self.checkpoint.dtype == "bfloat16" else "float16"

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one tensor in the files."""
        parts = {row.role: row.parts for row in self.rows.values()}
        return "head" in parts and parts["head"] == parts.get("embedding")

    def row(self, layer: str) -> DiskLayer:
        """A layer by name.

        Raises:
            UsageError: no layer has this name.
        """
        row = self.rows.get(layer)
        if row is None:
            raise UsageError(f"the checkpoint has no layer {layer!r}")
        return row

    def assert_at_rest(self) -> None:
        """Does nothing: files are only read."""

    def known(self, keys: Sequence[str]) -> dict[str, p.AnyFact]:
        """See `Workspace.known`."""
        return self.workspace.known(keys)
