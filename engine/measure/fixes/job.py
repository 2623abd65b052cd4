"""The job that tries fixes."""

from __future__ import annotations

import math

import msgspec

from engine import protocol as p
from engine.diagnosis.worst import worst_layers
from engine.errors import UsageError
from engine.recipes.changes import canonical
from engine.service.jobs import Context, JobSpec, Steps
from engine.workspace import Loaded, Workspace, needs


def _accepted(context: Context[Workspace], command: p.TryFixes) -> p.TryFixes:
    session = context.session
    (format,) = canonical([command.format or session.settings.sweep_formats[0]])
    if not 0 < command.forwards < math.inf:
        raise UsageError(f"{command.forwards:g} forward passes: expected more than 0")
    unknown = [name for name in command.layers if session.row(name) is None]
    if unknown:
        raise UsageError(f"the checkpoint has no layer {unknown[0]!r}")
    layers = command.layers or tuple(worst_layers(session, format)[: command.worst])
    if not layers:
        raise UsageError(
            f"no effect of {format} is known yet, so none is the worst: name layers, or sweep first"
        )
    return msgspec.structs.replace(command, format=format, layers=layers)


def _steps(context: Context[Workspace], command: p.TryFixes) -> Steps:
    from engine.measure.fixes.trying import try_fixes

    assert context.snapshot is not None
    return (
        yield from try_fixes(
            context.workspace.need(Loaded),
            context.snapshot,
            command.layers,
            command.format,
            command.forwards,
            context.job,
        )
    )


def _title(command: p.TryFixes) -> str:
    count = len(command.layers)
    where = command.layers[0] if count == 1 else f"{count} layers"
    return f"fixes of {command.format} for {where}"


TRY_FIXES = JobSpec(
    command=p.TryFixes,
    kind="fixes",
    title=_title,
    needs="model",
    lane="compute",
    urgency=3,
    repeated="join",
    memory=needs.of_passes(layers=4),
    snapshot=lambda command: True,
    accept=_accepted,
    steps=_steps,
)
