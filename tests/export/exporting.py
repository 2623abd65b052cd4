"""Exports of tests, straight to the target and without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint import Checkpoint
from engine.export.writer import Exported, Request, writer_of


def export_checkpoint(
    checkpoint: Checkpoint,
    recipe: Mapping[str, str],
    out: Path,
    to: str = "checkpoint",
    **options: Any,
) -> Exported:
    """Write a recipe to a target, with the options of a `Request`."""
    return writer_of(to).write(Request(checkpoint=checkpoint, recipe=recipe, out=out, **options))
