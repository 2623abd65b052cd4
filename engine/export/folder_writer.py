"""Writes a recipe as a folder of quantised weights, layer by layer.

It writes the stored form that the engine measures with, so the weights that a reader unpacks equal,
bit for bit, those behind the figures on the screen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from engine.checkpoint import DiskLayer, read_expert, read_layer
from engine.errors import EngineError, FormatError
from engine.export.expert_codes import expert_of
from engine.export.folder import atomic_folder, check_destination, copied_files, copy_files
from engine.export.folder_form import FolderForm
from engine.export.folder_plan import Plan, plan_of, why_not_exported
from engine.export.load_check import digest
from engine.export.refusal import NotExportable
from engine.export.tensor_groups import bytes_of, check_room, write_json, write_shards
from engine.export.writer import Codes, Exported, Request
from engine.formats.grammar import Format, needs_calibration, why_not_alone, without_folds
from engine.quant.methods.channel_scales import only_weights
from engine.quant.methods.gptq import Solved
from engine.quant.quantize import scale_dtype_for, stored_form
from engine.quant.stored import StoredWeight


def write_folder(form: FolderForm, check: FolderCheck, request: Request) -> Exported:
    """Write the layers of a recipe quantised, and the others as is.

    With ``request.check``, ``check`` has read it once before it appears. One layer and its codes
    are in memory at a time while it is written. Non-finite values are stored as 0 in quantised
    layers. A tied head gets its own weight if it or the embedding changes.

    Raises:
        NotExportable: some layers cannot be written; names all of them, with reasons.
        NotLoadable: it is not read as it was measured; nothing is left.
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
    experts: dict[str, dict[int, str]] = defaultdict(dict)
    dtype = getattr(torch, checkpoint.dtype)
    last: dict[str, tuple[int, StoredWeight]] = {}

    def stored(row: DiskLayer, fmt: Format) -> Codes:
        found = _stored(request, row, fmt, scale_dtype, notes)
        if request.check:
            digests[plan.quantised[row.name]] = digest(found.approx().to(dtype))
        return found

    def one_expert(row: DiskLayer, fmt: Format, expert: int) -> StoredWeight:
        if row.name in last and last[row.name][0] == expert:
            return last[row.name][1]
        found = _stored_expert(request, row, fmt, expert, scale_dtype, notes)
        last[row.name] = expert, found  # its gate and its up are written one after the other
        if request.check:
            experts[plan.quantised[row.name]][expert] = digest(found.approx().to(dtype))
        return found

    plan = plan_of(form, request, scale_dtype, stored, one_expert)
    if request.check:
        for name, module in plan.replaced.items():
            digests[module] = digest(request.folds.tensors[name].to(dtype))
    beside = copied_files(checkpoint.folder, follow_links=checkpoint.follow_links)
    total = bytes_of(plan.shards)
    copies = sum((checkpoint.folder / file).stat().st_size for file in beside)
    check_room(out.parent, total + copies)
    try:
        with atomic_folder(out) as folder:
            copy_files(checkpoint.folder, beside, folder)
            write_json(folder / "config.json", plan.config)
            if request.card:
                (folder / "README.md").write_text(request.card, encoding="utf-8")
            if request.check:
                check.planned(request, plan, folder)
            write_shards(plan.shards, folder, total, request.on_progress)
            if request.check:
                notes += check.written(request, plan, folder, digests, experts)
    except OSError as error:
        raise EngineError(f"{out} cannot be written: {error.strerror or error}") from error
    return Exported(out, total, tuple(plan.quantised), tuple(dict.fromkeys([*plan.notes, *notes])))


def _stored(
    request: Request, row: DiskLayer, fmt: Format, scale_dtype: torch.dtype, notes: list[str]
) -> Codes:
    """The stored form of a layer: from calibration if available, else computed here."""
    weight = read_layer(request.checkpoint, row).to(request.device)
    if not bool(weight.abs().amax().isfinite()):
        notes.append(f"{row.name} has NaN or infinite values: stored as 0")
    found = request.solved(row, fmt)
    if found is None:
        _check_given(request, row, fmt)
        scaled = request.folds.scaled(row.name, weight)
        found = stored_form(scaled, only_weights(fmt), scale_dtype, row.name)
    return request.folds.divided(row.name, found)


def _check_given(request: Request, row: DiskLayer, fmt: Format) -> None:
    """Raise if a layer's codes cannot be computed from its weight and its scale."""
    rest = without_folds(fmt) if row.name in request.folds.scales else fmt
    if needs_calibration(rest) and (why := why_not_alone(rest)) is not None:
        raise FormatError(f"{row.name}: {why}, and its codes were not given")


def _stored_expert(
    request: Request,
    row: DiskLayer,
    fmt: Format,
    expert: int,
    scale_dtype: torch.dtype,
    notes: list[str],
) -> StoredWeight:
    """`_stored` of one expert."""
    folds = request.folds
    given = request.solved(row, fmt)
    if given is None:
        _check_given(request, row, fmt)
        weight = read_expert(request.checkpoint, row, expert).to(request.device)
        if not bool(weight.abs().amax().isfinite()):
            notes.append(f"{row.name} has NaN or infinite values: stored as 0")
        weight = folds.scaled(row.name, weight)
        found = stored_form(weight, only_weights(fmt), scale_dtype, row.name)
    else:
        found = expert_of(given, expert)
    divided = folds.divided(row.name, found)
    assert not isinstance(divided, Solved)
    return divided


def _nothing(*_args: object) -> Any:
    """Nothing is written from this plan."""
    raise AssertionError("a plan that is only checked")


class FolderCheck(Protocol):
    """Reads a folder before it counts as written."""

    def close(self) -> None:
        """Free what it holds; nothing is checked after this."""
        ...

    def planned(self, request: Request, plan: Plan, folder: Path) -> None:
        """What names and shapes alone show; ``folder`` has the config, and code if there is any.

        Raises:
            NotLoadable: it would not be read.
        """
        ...

    def written(
        self,
        request: Request,
        plan: Plan,
        folder: Path,
        digests: Mapping[str, str],
        experts: Mapping[str, Mapping[int, str]],
    ) -> list[str]:
        """Read the folder; returns notes, such as why it was not read.

        Args:
            request: of the export.
            plan: what was written.
            folder: complete.
            digests: `digest` of each quantised weight in the checkpoint's dtype, by module.
            experts: of each quantised expert, by parameter and number.

        Raises:
            NotLoadable: other weights are read than were measured.
        """
        ...


class FolderWriter:
    """The writer of a form of folder."""

    def __init__(self, form: FolderForm, new_check: Callable[[], FolderCheck]) -> None:
        self._form, self._new_check = form, new_check

    def check(self, request: Request) -> None:
        """See `Writer`."""
        checkpoint, recipe = request.checkpoint, request.recipe
        check_destination(request.out, checkpoint.folder, overwrite=request.overwrite)
        trusted = request.trust_remote_code
        refused = why_not_exported(self._form, checkpoint, recipe, trust_remote_code=trusted)
        if refused:
            raise NotExportable(refused, self._form.name)
        if not request.check:
            return
        dtype = request.scale_dtype or scale_dtype_for(getattr(torch, checkpoint.dtype))
        plan = plan_of(self._form, request, dtype, _nothing, _nothing)
        code = [
            file
            for file in copied_files(checkpoint.folder, follow_links=checkpoint.follow_links)
            if file.suffix == ".py"
        ]
        with TemporaryDirectory(prefix="qtui-") as folder, closing(self._new_check()) as check:
            copy_files(checkpoint.folder, code, Path(folder))
            write_json(Path(folder) / "config.json", plan.config)
            check.planned(request, plan, Path(folder))

    def write(self, request: Request) -> Exported:
        """See `Writer`."""
        with closing(self._new_check()) as check:
            return write_folder(self._form, check, request)
