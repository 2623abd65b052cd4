"""Writes a recipe as a compressed-tensors checkpoint, layer by layer.

It writes the stored form that the engine measures with, so the weights that ``transformers``
unpacks equal, bit for bit, those behind the figures on the screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from engine.checkpoint import DiskLayer, read_layer
from engine.errors import EngineError, FormatError
from engine.export.compressed.plan import FORM, plan_of, why_not_exported
from engine.export.folder import atomic_folder, check_destination, copied_files, copy_files
from engine.export.load_check import check_loads, digest
from engine.export.tensor_groups import bytes_of, check_room, write_json, write_shards
from engine.export.writer import Codes, Exported, NotExportable, Request
from engine.formats.grammar import Format, needs_calibration, why_not_alone
from engine.model.memory import GIB, memory_free, memory_needed
from engine.quant.methods.channel_scales import only_weights
from engine.quant.quantize import scale_dtype_for, stored_form


def export_checkpoint(request: Request) -> Exported:
    """Write the layers of a recipe quantised, for compressed-tensors, and the others as is.

    With ``request.check``, ``transformers.AutoModelForCausalLM.from_pretrained(out)`` has loaded it
    once before it appears. One layer and its codes are in memory at a time while it is written.
    Non-finite values are stored as 0 in quantised layers. A tied head gets its own weight if it or
    the embedding changes.

    Raises:
        NotExportable: some layers cannot be written; names all of them, with reasons.
        NotLoadable: transformers does not read it as it was measured; nothing is left.
        UsageError: an unknown layer, or ``out`` exists.
        FormatError: a format that does not parse, or a scale that overflows.
        CheckpointError: the checkpoint cannot be read, or is already quantised.
        EngineError: the disk is too small, or cannot be written to.
    """
    checkpoint, out = request.checkpoint, Path(request.out).expanduser().absolute()
    check_destination(out, checkpoint.folder, overwrite=request.overwrite)
    scale_dtype = request.scale_dtype or scale_dtype_for(getattr(torch, checkpoint.dtype))
    notes: list[str] = []
    digests: dict[str, str] = {}

    def stored(row: DiskLayer, fmt: Format) -> Codes:
        found = _stored(request, row, fmt, scale_dtype, notes)
        if request.check:
            approx = found.approx().to(getattr(torch, checkpoint.dtype))
            digests[plan.quantised[row.name]] = digest(approx)
        return found

    plan = plan_of(checkpoint, request.recipe, scale_dtype, stored, request.trust_remote_code)
    beside = copied_files(checkpoint.folder, follow_links=checkpoint.follow_links)
    total = bytes_of(plan.shards)
    copies = sum((checkpoint.folder / file).stat().st_size for file in beside)
    check_room(out.parent, total + copies)
    try:
        with atomic_folder(out) as folder:
            copy_files(checkpoint.folder, beside, folder)
            write_shards(plan.shards, folder, total, request.on_progress)
            write_json(folder / "config.json", plan.config)
            if request.check:
                notes += _checked(request, folder, digests, total)
    except OSError as error:
        raise EngineError(f"{out} cannot be written: {error.strerror or error}") from error
    return Exported(out, total, tuple(plan.quantised), tuple(dict.fromkeys([*plan.notes, *notes])))


def _checked(request: Request, folder: Path, digests: Mapping[str, str], total: int) -> list[str]:
    """Load what was written, if it fits beside what is in memory; say if it was not loaded."""
    checkpoint = request.checkpoint
    shapes = (tensor.shape for tensor in checkpoint.tensors.values())
    # Codes are unpacked beside what was loaded.
    needed = 2 * memory_needed(shapes, getattr(torch, checkpoint.dtype))
    free = memory_free("cpu")
    if needed > free:
        return [
            f"not loaded by transformers to check it: that takes {needed / GIB:.1f} GiB of memory, "
            f"and {free / GIB:.1f} GiB are free"
        ]
    check_loads(
        folder,
        digests,
        lambda: request.on_progress(total, total, "loading it with transformers"),
        trust_remote_code=request.trust_remote_code,
    )
    return []


def _stored(
    request: Request, row: DiskLayer, fmt: Format, scale_dtype: torch.dtype, notes: list[str]
) -> Codes:
    """The stored form of a layer: from calibration if available, else computed here."""
    weight = read_layer(request.checkpoint, row).to(request.device)
    if not bool(weight.abs().amax().isfinite()):
        notes.append(f"{row.name} has NaN or infinite values: stored as 0")
    found = request.solved(row, fmt)
    if found is not None:
        return found
    if needs_calibration(fmt) and (why := why_not_alone(fmt)) is not None:
        raise FormatError(f"{row.name}: {why}, and its codes were not given")
    return stored_form(weight, only_weights(fmt), scale_dtype, row.name)


class _Writer:
    def check(self, request: Request) -> None:
        checkpoint, recipe = request.checkpoint, request.recipe
        check_destination(request.out, checkpoint.folder, overwrite=request.overwrite)
        trusted = request.trust_remote_code
        if refused := why_not_exported(checkpoint, recipe, trust_remote_code=trusted):
            raise NotExportable(refused, FORM)

    def write(self, request: Request) -> Exported:
        return export_checkpoint(request)


WRITER = _Writer()
