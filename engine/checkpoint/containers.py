"""Opens a checkpoint in whatever container it comes: a folder of transformers, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.dequantised import open_folder
from engine.checkpoint.gguf import is_gguf, open_gguf


def open_checkpoint(path: Path, *, follow_links: bool = False) -> Checkpoint:
    """Open the checkpoint at ``path``, reading only its config and the headers of its weights.

    Args:
        path: a folder, as `open_folder` takes it; or a GGUF file, one of its parts.
        follow_links: whether files of a folder may be links out of it.

    Raises:
        CheckpointError: something is missing, truncated, contradictory or unsafe; names it.
    """
    path = Path(path).expanduser().absolute()
    return open_gguf(path) if is_gguf(path) else open_folder(path, follow_links=follow_links)
