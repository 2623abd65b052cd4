"""Jobs on the error of a recipe inside the model: outputs and drift, and a map of a weight's."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import parse_built
from engine.recipes.given import as_evaluated, check_given, given_recipe, names_recipe
from engine.service.jobs import Context, JobSpec, Outcome, Resolved, Steps
from engine.workspace import Loaded, Opened, Workspace, needs


def _accepted(context: Context[Workspace], command: p.MeasureErrors) -> p.MeasureErrors:
    if names_recipe(command):
        check_given(as_evaluated(command))
    elif not context.session.changed:
        raise UsageError("every layer is as stored, so there is no error: give some a format first")
    return command


def _recipe(context: Context[Workspace], command: p.MeasureErrors) -> Resolved:
    if not names_recipe(command):
        return context.session.recipe(), ()
    tied = context.workspace.need(Opened).tied
    return given_recipe(context.session, as_evaluated(command), tied=tied)


def _steps(context: Context[Workspace], command: p.MeasureErrors) -> Steps:
    from engine.measure.counts import JobCounts
    from engine.measure.errors.measuring import measure_errors

    counts = JobCounts(job=context.job)
    yield from measure_errors(context.workspace.need(Loaded), context.recipe, counts)
    return counts.outcome()


ERRORS = JobSpec(
    command=p.MeasureErrors,
    kind="errors",
    title=lambda command: " ".join(["errors", command.recipe, command.format]).strip(),
    needs="model",
    lane="compute",
    urgency=3,
    repeated="replace",
    memory=needs.of_passes(streams=2),
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_recipe,
    steps=_steps,
)


def _map_accepted(context: Context[Workspace], command: p.AskErrorMap) -> p.AskErrorMap:
    if context.session.row(command.layer) is None:
        raise UsageError(f"the checkpoint has no layer {command.layer!r}")
    return msgspec.structs.replace(command, format=str(parse_built(command.format)))


def _map(context: Context[Workspace], command: p.AskErrorMap) -> Steps:
    from engine.measure.errors.weight_map import draw_error_map

    opened = context.workspace.need(Opened)
    yield from draw_error_map(opened, opened.row(command.layer), command.format)
    return Outcome()


ERROR_MAP = JobSpec(
    command=p.AskErrorMap,
    kind="error map",
    title=lambda command: f"errors of {command.layer} in {command.format}",
    needs="checkpoint",
    lane="questions",
    urgency=0,
    newest_first=True,  # the layer under the cursor is drawn first
    announced="never",
    accept=_map_accepted,
    steps=_map,
)
