"""A plugin as another package would write it: a command and its job, registered on import."""

from __future__ import annotations

from typing import Any

from engine import protocol as p
from engine.errors import UsageError
from engine.service.commands import register
from engine.service.jobs import Context, JobSpec, OnLane, Outcome, Steps


class CountLayers(p.Command, frozen=True):
    """How many layers have a kind."""

    kinds: tuple[str, ...] = ()


def _accepted(context: Context[Any], command: CountLayers) -> CountLayers:
    if "" in command.kinds:
        raise UsageError("a kind has a name")
    return command


def _steps(context: Context[Any], command: CountLayers) -> Steps:
    import threading

    yield p.Notice("info", f"begun on {threading.current_thread().name}")
    yield OnLane("export")
    yield p.Notice("info", f"goes on on {threading.current_thread().name}")
    wanted = command.kinds
    found = [name for name in context.workspace.rows if name.endswith(wanted or ("",))]
    yield p.Progress(job=context.job, done=len(found), total=len(found))
    return Outcome(measured=len(found))


COUNT = JobSpec(
    command=CountLayers,
    kind="count",
    title=lambda command: " ".join(["count", *command.kinds]),
    needs="checkpoint",
    urgency=1,
    repeated="refuse",
    accept=_accepted,
    steps=_steps,
)

register(COUNT)
