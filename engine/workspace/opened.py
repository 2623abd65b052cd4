"""An open checkpoint: its files, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from engine import protocol as p
from engine.checkpoint import Checkpoint, DiskLayer
from engine.checkpoint.architecture import architecture_name
from engine.checkpoint.companions import layouts_of
from engine.checkpoint.groups import fused_groups
from engine.checkpoint.kv_cache import cache_blocks
from engine.errors import UsageError
from engine.session.artefact import bits_as_stored
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

    def read(self) -> p.CheckpointRead:
        """What the headers say."""
        checkpoint = self.checkpoint
        return p.CheckpointRead(
            name="demo" if self.demo else checkpoint.name,
            path=str(self.path),
            architecture=architecture_name(checkpoint.config) or "?",
            parameters=checkpoint.parameters,
            bytes=checkpoint.bytes,
            dtype=checkpoint.dtype,
            fingerprint=checkpoint.fingerprint,
            cache=cache_blocks(checkpoint.config),
            stored=" and ".join(layouts_of(checkpoint)),
        )

    def listed(self) -> p.LayersListed:
        """The rows of the table."""
        rows = list(self.rows.values())
        names = [row.name for row in rows]
        blocks = [-1 if row.block is None else row.block for row in rows]
        roles = [row.role for row in rows]
        return p.LayersListed(
            names=names,
            kinds=[row.kind for row in rows],
            blocks=blocks,
            roles=roles,
            shapes=[row.shape for row in rows],
            dtypes=[row.dtype for row in rows],
            other_bytes=self.other_bytes,
            groups=fused_groups(names, blocks, roles),
            tied=self.tied,
            bits=[row_bits(row) for row in rows] if any(row.own_bits for row in rows) else [],
        )

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

    def give_way(self) -> str | None:
        """Nothing is cached that could be given up."""
        return None

    @property
    def exhausted(self) -> bool:
        """Never: there is nothing to give."""
        return False

    def take_back(self) -> None:
        """Does nothing: nothing was given up."""

    def memory(self) -> str:
        """Empty: files are read a layer at a time."""
        return ""

    def known(self, keys: Sequence[str]) -> dict[str, p.AnyFact]:
        """See `Workspace.known`."""
        return self.workspace.known(keys)


def row_bits(row: DiskLayer) -> int:
    """Bits of a layer in the files: of all its tensors, if it is stored quantised."""
    return row.own_bits or bits_as_stored(row.shape, row.dtype)
