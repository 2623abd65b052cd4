"""Writes a recipe as a compressed-tensors checkpoint, which plain transformers has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from engine.export.compressed.folder import COMPRESSED
from engine.export.folder_plan import Plan
from engine.export.folder_writer import FolderWriter
from engine.export.load_check import Loader
from engine.export.tensor_groups import bytes_of
from engine.export.writer import Exported, Request
from engine.model.memory import GIB, memory_free, memory_needed


class _ByTransformers:
    """Plain transformers loads it, in another process: one for all that is asked of an export."""

    def __init__(self) -> None:
        self._loader = Loader()
        self.close = self._loader.close

    def planned(self, request: Request, plan: Plan, folder: Path) -> None:
        """Load what is planned without values."""
        checkpoint = request.checkpoint
        slots = {
            name: slot
            for groups in plan.shards.values()
            for group in groups
            for name, slot in group.slots.items()
        }
        shapes = {}
        for name in slots:
            prefix, found, _ = name.partition(".weight_shape")
            if found:
                weight = checkpoint.tensors.get(f"{prefix}.weight")
                shapes[name] = (1, 1) if weight is None else tuple(weight.shape)
        self._loader.check_would_load(
            folder,
            slots,
            shapes,
            lambda: request.on_progress(0, bytes_of(plan.shards), "whether transformers loads it"),
            trust_remote_code=request.trust_remote_code,
        )

    def written(
        self,
        request: Request,
        plan: Plan,
        folder: Path,
        digests: Mapping[str, str],
        experts: Mapping[str, Mapping[int, str]],
    ) -> list[str]:
        """Load what was written, if it fits beside what is in memory; say if it was not loaded."""
        checkpoint, total = request.checkpoint, bytes_of(plan.shards)
        shapes = (tensor.shape for tensor in checkpoint.tensors.values())
        # Codes are unpacked beside what was loaded.
        needed = 2 * memory_needed(shapes, getattr(torch, checkpoint.dtype))
        free = memory_free("cpu")
        if needed > free:
            return [
                f"not loaded by transformers to check it: that takes {needed / GIB:.1f} GiB of "
                f"memory, and {free / GIB:.1f} GiB are free"
            ]
        self._loader.check_loads(
            folder,
            digests,
            lambda: request.on_progress(total, total, "loading it with transformers"),
            experts=experts,
            trust_remote_code=request.trust_remote_code,
        )
        return []


WRITER = FolderWriter(COMPRESSED, _ByTransformers)


def export_checkpoint(request: Request) -> Exported:
    """Write a compressed-tensors checkpoint; see `folder_writer.write_folder`."""
    return WRITER.write(request)
