"""The diagnosing job: a triage, a sweep of the worst layers, errors if asked for."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.recipes.changes import canonical
from engine.recipes.given import as_evaluated, check_given, given_recipe, names_recipe
from engine.service.jobs import Context, JobSpec, Outcome, Resolved, Steps
from engine.session import without_methods
from engine.workspace import Loaded, Opened, Workspace

EXACT = "top:5"
"""Layers that are measured, worst first; the others are estimated."""


def _accepted(context: Context[Workspace], command: p.Diagnose) -> p.Diagnose:
    settings = context.session.settings
    (format,) = canonical([command.format or settings.sweep_formats[0]])
    errors = command.errors
    if errors is not None:
        if not names_recipe(errors):
            errors = msgspec.structs.replace(errors, format=format)
        check_given(as_evaluated(errors))
    return msgspec.structs.replace(command, format=format, errors=errors)


def _recipe(context: Context[Workspace], command: p.Diagnose) -> Resolved:
    if command.errors is None:
        return {}, ()
    tied = context.workspace.need(Opened).tied
    return given_recipe(context.session, as_evaluated(command.errors), tied=tied)


def _steps(context: Context[Workspace], command: p.Diagnose) -> Steps:
    from engine.measure.counts import JobCounts
    from engine.measure.errors.measuring import measure_errors
    from engine.measure.sweep.sweep import sweep
    from engine.measure.weights.triage import triage

    formats = (str(without_methods(command.format)), *context.workspace.settings.formats)
    read = yield from triage(
        context.workspace.need(Opened), tuple(dict.fromkeys(formats)), context.job
    )
    swept = yield from sweep(
        context.workspace.need(Loaded), (command.format,), "degrade", context.job, exact=EXACT
    )
    counts = JobCounts(job=context.job)
    if command.errors is not None:
        yield from measure_errors(context.workspace.need(Loaded), context.recipe, counts)
    return Outcome(
        measured=read.measured + swept.measured + counts.measured,
        resumed=read.resumed + swept.resumed + counts.known,
        timings=counts.timings | swept.timings | read.timings,
    )


DIAGNOSE = JobSpec(
    command=p.Diagnose,
    kind="diagnose",
    title=lambda command: f"diagnose {command.format}".strip(),
    needs="model",
    lane="compute",
    urgency=4,
    repeated="join",
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_recipe,
    steps=_steps,
)
