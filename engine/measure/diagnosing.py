"""The diagnosing job: a triage, a sweep of the worst layers; errors, and fixes, if asked for."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine import protocol as p
from engine.diagnosis.worst import worst_layers
from engine.errors import UsageError
from engine.measure.sweep.exactness import DIAGNOSED
from engine.recipes.changes import canonical
from engine.recipes.given import as_evaluated, check_given, given_recipe, names_recipe
from engine.service.jobs import Context, JobSpec, Outcome, Resolved, Steps
from engine.session import without_methods
from engine.workspace import Loaded, Opened, Workspace, needs


def _accepted(context: Context[Workspace], command: p.Diagnose) -> p.Diagnose:
    settings = context.session.settings
    (format,) = canonical([command.format or settings.sweep_formats[0]])
    if command.fixes < 0:
        raise UsageError(f"fixes of {command.fixes} layers: expected 0 or more")
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
    from engine.measure.fixes.knowing import followed, fresh_session
    from engine.measure.sweep.sweep import sweep
    from engine.measure.weights.triage import triage

    session = fresh_session(context.workspace.need(Opened))
    formats = (str(without_methods(command.format)), *context.workspace.settings.formats)
    opened, loaded = context.workspace.need(Opened), context.workspace.need(Loaded)
    reading = triage(opened, tuple(dict.fromkeys(formats)), context.job)
    read = yield from followed(session, reading)
    sweeping = sweep(loaded, (command.format,), "degrade", context.job, exact=DIAGNOSED)
    swept = yield from followed(session, sweeping)
    counts = JobCounts(job=context.job)
    if command.errors is not None:
        yield from measure_errors(loaded, context.recipe, counts)
    found = Outcome(
        measured=read.measured + swept.measured + counts.measured,
        resumed=read.resumed + swept.resumed + counts.known,
        timings=_added(_added(counts.timings, swept.timings), read.timings),
    )
    if not command.fixes:
        return found
    from engine.measure.fixes.trying import try_fixes

    worst = worst_layers(session, command.format)[: command.fixes]
    given = p.TryFixes().forwards
    tried = yield from try_fixes(loaded, session, worst, command.format, given, context.job)
    return Outcome(
        measured=found.measured + tried.measured,
        resumed=found.resumed + tried.resumed,
        timings=_added(found.timings, tried.timings),
    )


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Seconds by activity of two parts of a job; loading counts once."""
    names = dict.fromkeys((*one, *other))
    return {
        name: max(one.get(name, 0.0), other.get(name, 0.0))
        if name == "load_s"
        else one.get(name, 0.0) + other.get(name, 0.0)
        for name in names
    }


DIAGNOSE = JobSpec(
    command=p.Diagnose,
    kind="diagnose",
    title=lambda command: f"diagnose {command.format}".strip(),
    needs="model",
    lane="compute",
    urgency=4,
    repeated="join",
    memory=needs.of_passes(streams=2, backward=True),
    announced="when ready",  # layer names are final only once the model is loaded
    accept=_accepted,
    recipe=_recipe,
    steps=_steps,
)
