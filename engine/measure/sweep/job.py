"""The sweep job."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.measure.sweep.exactness import parse_exactness
from engine.recipes.changes import canonical
from engine.service.jobs import Context, JobSpec, Steps
from engine.workspace import Loaded, Workspace, needs


def _accepted(context: Context[Workspace], command: p.Sweep) -> p.Sweep:
    formats = canonical(command.formats or context.session.settings.sweep_formats)
    exact = str(parse_exactness(command.exact))
    if command.by != "layer" and exact == "none":
        raise UsageError(
            f"--by {command.by} needs measurements, and --exact none makes none: estimates are of "
            "single layers; use --exact all or top:K, or leave --by out"
        )
    return msgspec.structs.replace(command, formats=formats, exact=exact)


def _title(command: p.Sweep) -> str:
    asked = (command.direction, f"by {command.by}", command.exact)
    unusual = [word for word in asked if word not in ("degrade", "by layer", "all")]
    return " ".join(["sweep", *command.formats, *unusual])


def _steps(context: Context[Workspace], command: p.Sweep) -> Steps:
    from engine.measure.sweep.sweep import sweep

    return (
        yield from sweep(
            context.workspace.need(Loaded),
            command.formats,
            command.direction,
            context.job,
            exact=command.exact,
            by=command.by,
            only=command.only,
        )
    )


def _units(context: Context[Workspace], command: p.MeasureUnits) -> Steps:
    from engine.measure.sweep.measured import measure_units

    return (yield from measure_units(context.workspace.need(Loaded), command, context.job))


MEASURE_UNITS = JobSpec(
    command=p.MeasureUnits,
    kind="units",
    title=lambda command: f"measure {len(command.units)} units in {command.format}",
    needs="model",
    lane="compute",
    urgency=4,
    memory=needs.of_passes(streams=2),
    steps=_units,
)


def _windows(context: Context[Workspace], command: p.SumWindows) -> Steps:
    from engine.measure.estimate.shared_pass import sum_windows

    return (yield from sum_windows(context.workspace.need(Loaded), command, context.job))


SUM_WINDOWS = JobSpec(
    command=p.SumWindows,
    kind="windows",
    title=lambda command: f"estimate windows {command.windows[0] + 1} to {command.windows[1]}",
    needs="model",
    lane="compute",
    urgency=4,
    memory=needs.of_passes(streams=2, backward=True),
    steps=_windows,
)

SWEEP = JobSpec(
    command=p.Sweep,
    kind="sweep",
    title=_title,
    needs="model",
    lane="compute",
    urgency=4,
    repeated="refuse",
    memory=needs.of_passes(streams=2, backward=True),
    accept=_accepted,
    steps=_steps,
)
