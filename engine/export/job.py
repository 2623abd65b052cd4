"""The export job: solves on calibration inputs if a format needs them, then writes.

What the work needs is imported at its first step: every engine imports this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine import protocol as p
from engine.errors import InfeasibleError, UsageError
from engine.export.held import nearest_recipe, weights_of
from engine.export.refusal import NotExportable
from engine.export.target import target_named
from engine.formats.grammar import needs_calibration, parse_format
from engine.recipes.given import check_given, formats_given, given_recipe
from engine.service.in_thread import AbandonedError, in_thread
from engine.service.jobs import Context, JobSpec, Lane, Needs, OnLane, Outcome, Resolved, Steps
from engine.session import Session
from engine.workspace import Loaded, Opened, Workspace, needs

if TYPE_CHECKING:
    from engine.export.folds import Folds
    from engine.export.writer import Exported, Request
    from engine.quant.methods.gptq import Solved


def calibrates(command: p.Export) -> bool:
    """Whether an export needs the model and calibration text: a recipe for another tool needs
    neither."""
    if target_named(command.to).words is not None:
        return False
    formats = [held for held in formats_given(command) if held != "kept"]
    return any(needs_calibration(parse_format(held)) for held in formats)


def _accepted(context: Context[Workspace], command: p.Export) -> p.Export:
    if not Path(command.out).is_absolute():
        raise UsageError(f"{command.out!r} is not an absolute path: an export needs one")
    target_named(command.to)
    check_given(command)
    return command


def _needs(command: p.Export) -> Needs:
    return "model" if calibrates(command) else "checkpoint"


def _lane(command: p.Export) -> Lane:
    return "compute" if calibrates(command) else "export"


def _given(context: Context[Workspace], command: p.Export) -> Resolved:
    session = context.session
    recipe, fallbacks = given_recipe(session, command, tied=context.workspace.need(Opened).tied)
    if command.nearest:
        fallbacks += _take_nearest(session, command.to, recipe)
    return recipe, fallbacks


def _take_nearest(session: Session, to: str, recipe: dict[str, str]) -> list[p.Fallback]:
    """Replace formats that a target cannot hold by the nearest that it can."""
    found = []
    for layer, (near, why) in nearest_recipe(target_named(to), weights_of(session), recipe).items():
        held = recipe.pop(layer, "kept")
        if near != "kept":
            recipe[layer] = near
        found.append(
            p.Fallback(layer=layer, format=held, why=why, holds="" if near == "kept" else near)
        )
    return found


def _steps(context: Context[Workspace], command: p.Export) -> Steps:
    """Solve and write.

    Yields:
        `Progress` in bytes, finally `Exported`.

    Raises:
        InfeasibleError: the target cannot express the recipe, the program that it is for does not
            load what was written, or nothing would change.
        AbandonedError: it was cancelled; nothing is left behind.
        EngineError: see the target's `Writer` and `solved_codes`.
    """
    if not context.recipe:
        raise InfeasibleError("the recipe keeps every layer as it is: nothing to export")
    begun = time.perf_counter()
    solved: Calibrated | None = None
    try:
        if calibrates(command):
            solved = yield from _calibrate(context, command)
            yield OnLane("export")
        written = yield from _write(context, command, solved)
    except NotExportable as error:
        raise _with_nearest(error, context, command.to) from error
    spent = time.perf_counter() - begun
    timings = {**(solved.timings if solved is not None else {}), "total_s": spent}
    return Outcome(measured=len(written.quantised), timings=timings)


def _with_nearest(error: NotExportable, context: Context[Workspace], to: str) -> NotExportable:
    """The error with the nearest format of every layer that the target alone refuses, or that must
    be alike with others."""
    found = nearest_recipe(target_named(to), weights_of(context.session), context.recipe)
    near = {layer: held for layer, (held, _) in found.items() if layer in error.refused}
    return NotExportable(error.refused, error.form, error.nearest | near)


class Calibrated(NamedTuple):
    """What calibrating found."""

    codes: Mapping[str, Solved]
    """By layer."""
    folds: Folds
    timings: Mapping[str, float]
    """Seconds by what they were spent on."""


def _calibrate(
    context: Context[Workspace], command: p.Export
) -> Generator[p.AnyEvent | None, None, Calibrated]:
    """Codes and scales, on the compute lane; first refuse layers that cannot be written.

    Raises:
        NotExportable: some layers cannot be written.
    """
    from engine.export.folding import folds_of, why_not_folded
    from engine.export.writer import writer_of
    from engine.measure.calibration.approximate import solved_codes
    from engine.measure.counts import JobCounts

    loaded, recipe = context.workspace.need(Loaded), context.recipe
    writer_of(command.to).check(_request(context, command))
    yield None
    formats = {layer: parse_format(held) for layer, held in recipe.items()}
    if refused := why_not_folded(loaded, formats):
        target = target_named(command.to)
        raise NotExportable(refused, target.form or target.name)
    yield None
    counts = JobCounts(timings={"load_s": loaded.load_s}, job=context.job)
    found = yield from solved_codes(loaded, formats, counts)
    return Calibrated(found.forms, folds_of(loaded, formats, found.scales), counts.timings)


def _write(
    context: Context[Workspace], command: p.Export, solved: Calibrated | None
) -> Generator[p.AnyEvent | None, None, Exported]:
    """Write the folder in a thread of its own, one layer in memory at a time."""
    opened, recipe = context.workspace.need(Opened), context.recipe
    from engine.report.model_card import model_card

    card = model_card(context.session, recipe, command)

    def write(report: Callable[[p.Progress], None]) -> Exported:
        from engine.export.writer import writer_of
        from engine.model.load import choose_device

        started = time.perf_counter()

        def on_progress(done: int, total: int, tensor: str) -> None:
            # The job's own thread waits for this one, so cancelling does not close the job
            # meanwhile.
            if context.should_stop():
                raise AbandonedError("the export was cancelled")
            spent = time.perf_counter() - started
            left = spent * (total - done) / done if done else float("nan")
            report(
                p.Progress(
                    job=context.job, done=done, total=total, seconds_left=left, phase="writing",
                    subject=tensor, in_bytes=True,
                )
            )  # fmt: skip

        request = replace(
            _request(context, command),
            card=card,
            device=choose_device(opened.settings.device)[0],
            on_progress=on_progress,
        )
        if solved is not None:
            codes = solved.codes
            request = replace(
                request, solved=lambda row, _: codes.get(row.name), folds=solved.folds
            )
        return writer_of(command.to).write(request)

    written = yield from in_thread("exporting", write, wait=True)
    from engine.measure.evaluation.evaluate import recipe_size

    formats = {layer: parse_format(held) for layer, held in recipe.items()}
    size = recipe_size(opened, formats, tied=opened.tied)
    yield p.Exported(
        job=context.job,
        folder=str(written.folder),
        bytes=written.bytes,
        recipe=dict(recipe),
        quantised=list(written.quantised),
        bits_per_weight=size.bits_per_weight,
        bits_all=size.bits_all,
        to=command.to,
        codes=target_named(command.to).words is None,
        notes=list(written.notes),
    )
    return written


def _request(context: Context[Workspace], command: p.Export) -> Request:
    from engine.export.writer import Request

    opened = context.workspace.need(Opened)
    return Request(
        checkpoint=opened.checkpoint,
        recipe=context.recipe,
        out=Path(command.out),
        overwrite=command.overwrite,
        trust_remote_code=opened.settings.trust_remote_code,
        check=command.check,
    )


EXPORT = JobSpec(
    command=p.Export,
    kind="export",
    title=lambda command: "export",
    needs=_needs,
    lane=_lane,
    urgency=3,
    announced="when ready",
    memory=needs.of_either(calibrates, needs.of_passes(layers=4)),
    accept=_accepted,
    recipe=_given,
    steps=_steps,
)
