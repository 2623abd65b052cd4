"""The diagnosing job: a triage, then a sweep of the worst layers."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.recipes.changes import canonical
from engine.service.jobs import Context, JobSpec, Outcome, Steps
from engine.session import without_methods
from engine.workspace import Loaded, Opened, Workspace

EXACT = "top:5"
"""Layers that are measured, worst first; the others are estimated."""


def _accepted(context: Context[Workspace], command: p.Diagnose) -> p.Diagnose:
    settings = context.session.settings
    (format,) = canonical([command.format or settings.sweep_formats[0]])
    return msgspec.structs.replace(command, format=format)


def _steps(context: Context[Workspace], command: p.Diagnose) -> Steps:
    from engine.measure.sweep.sweep import sweep
    from engine.measure.weights.triage import triage

    formats = (str(without_methods(command.format)), *context.workspace.settings.formats)
    read = yield from triage(
        context.workspace.need(Opened), tuple(dict.fromkeys(formats)), context.job
    )
    swept = yield from sweep(
        context.workspace.need(Loaded), (command.format,), "degrade", context.job, exact=EXACT
    )
    return Outcome(
        measured=read.measured + swept.measured,
        resumed=read.resumed + swept.resumed,
        timings=swept.timings | read.timings,
    )


DIAGNOSE = JobSpec(
    command=p.Diagnose,
    kind="diagnose",
    title=lambda command: f"diagnose {command.format}".strip(),
    needs="model",
    lane="compute",
    urgency=4,
    repeated="join",
    accept=_accepted,
    steps=_steps,
)
