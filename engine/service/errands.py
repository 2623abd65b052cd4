"""What is done beside the measuring: a layer's histogram, its experts, a checkpoint written.

Each reads the checkpoint alone; an export in formats that calibrate has `calibrating` before it,
which runs where everything is measured. What they need is imported at their first step, on their
own thread: a command never waits for a library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from engine import protocol as p
from engine.checkpoint import DiskLayer
from engine.errors import InfeasibleError, UsageError
from engine.formats.grammar import needs_calibration, parse_format
from engine.service.scheduler import AbandonedError, Outcome, Steps, aside
from engine.workspace import Loaded, Opened

if TYPE_CHECKING:
    from engine.export import Exported
    from engine.quant.methods.gptq import Solved

Question = p.AskHistogram | p.AskExperts
"""A small question about one layer."""


def answering(opened: Opened, question: Question) -> Steps:
    """The steps that answer a question.

    Raises:
        UsageError: at once, for a layer there is not or one that cannot be asked this.
        FormatError: at once, for a format that does not parse.
    """
    row = opened.rows.get(question.layer)
    if row is None:
        raise UsageError(f"the checkpoint has no layer {question.layer!r}")
    if isinstance(question, p.AskHistogram):
        return _histogram(opened, row, question)
    if row.role != "experts":
        raise UsageError(
            f"{row.name} holds no experts: it is one weight of shape {list(row.shape)}"
        )
    return _experts(opened, row)


def _histogram(opened: Opened, row: DiskLayer, question: p.AskHistogram) -> Steps:
    if question.bins < 1:
        raise UsageError(f"a histogram has at least one bin, not {question.bins}")
    format = question.format
    if format not in ("", "kept"):
        format = str(parse_format(format))

    def steps() -> Steps:
        from engine.measure.weights.histogram import draw_histogram

        return (yield from draw_histogram(opened, row, question.bins, format))

    return steps()


def _experts(opened: Opened, row: DiskLayer) -> Steps:
    from engine.measure.weights.experts import survey_experts

    return (yield from survey_experts(opened, row))


def exporting(
    opened: Opened,
    recipe: Mapping[str, str],
    out: Path,
    job: str,
    *,
    overwrite: bool,
    should_stop: Callable[[], bool],
    codes: Mapping[str, Solved] = MappingProxyType({}),
    before: Outcome | None = None,
) -> Steps:
    """Write a recipe as a checkpoint; a job that is closed leaves nothing behind.

    Args:
        opened: the checkpoint; no model is needed but for ``codes``.
        recipe: layers that are not kept, with canonical formats.
        out: the folder to write.
        job: whose progress it is.
        overwrite: whether a checkpoint in ``out`` may be replaced.
        should_stop: asked before every tensor whether to break off.
        codes: of layers that were solved on calibration inputs, by `calibrating`.
        before: how that ended.

    Yields:
        `Progress` in bytes, at last `Exported`.

    Raises:
        InfeasibleError: the form cannot express the recipe, or nothing would be changed.
        AbandonedError: it was to break off.
        EngineError: what `export_checkpoint` raises.
    """
    if not recipe:
        raise InfeasibleError("the recipe keeps every layer as it is: there is nothing to export")
    begun = time.perf_counter()

    def write(tell: Callable[[p.Progress], None]) -> Exported:
        from engine.export import export_checkpoint
        from engine.model.load import choose_device

        started = time.perf_counter()

        def on_progress(done: int, total: int, tensor: str) -> None:
            # The job's own thread waits for this one: a cancelled job is not closed meanwhile.
            if should_stop():
                raise AbandonedError("the export was cancelled")
            spent = time.perf_counter() - started
            left = spent * (total - done) / done if done else float("nan")
            tell(p.Progress(job=job, done=done, total=total, seconds_left=left, detail=tensor))

        return export_checkpoint(
            opened.checkpoint,
            recipe,
            out,
            overwrite=overwrite,
            device=choose_device(opened.settings.device)[0],
            trust_remote_code=opened.settings.trust_remote_code,
            solved=lambda row, _: codes.get(row.name),
            on_progress=on_progress,
        )

    written = yield from aside("exporting", write, wait=True)
    from engine.measure.evaluation.evaluate import recipe_size

    formats = {layer: parse_format(held) for layer, held in recipe.items()}
    yield p.Exported(
        job=job,
        folder=str(written.folder),
        bytes=written.bytes,
        recipe=dict(recipe),
        quantised=list(written.quantised),
        bits_per_weight=recipe_size(opened, formats).bits_per_weight,
        notes=list(written.notes),
    )
    timings = {} if before is None else before.timings
    spent = time.perf_counter() - begun + timings.get("total_s", 0.0)
    return Outcome(measured=len(written.quantised), timings={**timings, "total_s": spent})


def calibrates(formats: Iterable[str]) -> bool:
    """Whether an export in any of these formats needs the model, and calibration text."""
    return any(format != "kept" and needs_calibration(parse_format(format)) for format in formats)


def calibrating(
    loaded: Loaded,
    recipe: Mapping[str, str],
    out: Path,
    codes: dict[str, Solved],
    *,
    overwrite: bool,
) -> Steps:
    """What of an export has to be done where everything is measured: solve on calibration inputs.

    What the export would refuse is refused before.

    Args:
        loaded: the model.
        recipe: as of `exporting`.
        out: as of `exporting`.
        codes: filled, by layer.
        overwrite: as of `exporting`.

    Raises:
        NotExportable: layers that cannot be written.
        EngineError: as of `exporting`, or of `solved_codes`.
    """
    from engine.export import NotExportable, why_not_exported
    from engine.export.folder import check_place
    from engine.measure.calibration.approximate import solved_codes
    from engine.measure.counts import Account

    begun = time.perf_counter()
    checkpoint = loaded.opened.checkpoint
    check_place(out, checkpoint.folder, overwrite=overwrite)
    trusted = loaded.settings.trust_remote_code
    if refused := why_not_exported(checkpoint, recipe, trust_remote_code=trusted):
        raise NotExportable(refused)
    yield None
    account = Account(timings={"load_s": loaded.load_s})
    formats = {layer: parse_format(held) for layer, held in recipe.items()}
    codes.update((yield from solved_codes(loaded, formats, account)))
    return Outcome(timings={**account.timings, "total_s": time.perf_counter() - begun})
