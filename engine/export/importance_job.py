"""The job that writes an importance matrix; see `engine.export.importance_file`.

What the work needs is imported at its first step: every engine imports this module.
"""

from __future__ import annotations

from pathlib import Path

from engine import protocol as p
from engine.errors import UsageError
from engine.service.jobs import Context, JobSpec, Steps
from engine.workspace import Loaded, Workspace, needs


def _accepted(context: Context[Workspace], command: p.WriteImatrix) -> p.WriteImatrix:
    if not Path(command.out).is_absolute():
        raise UsageError(f"{command.out!r} is not an absolute path: an importance matrix needs one")
    return command


def _steps(context: Context[Workspace], command: p.WriteImatrix) -> Steps:
    from engine.export.importance_file import write_importances

    return (yield from write_importances(context.workspace.need(Loaded), command, context.job))


IMATRIX = JobSpec(
    command=p.WriteImatrix,
    kind="imatrix",
    title=lambda command: "importance matrix",
    needs="model",
    lane="compute",
    urgency=3,
    announced="when ready",
    memory=needs.of_passes(layers=0),
    accept=_accepted,
    steps=_steps,
)
