"""A plugin as another package would write it: a command and its job, registered on import."""

from __future__ import annotations

from engine import protocol as p
from engine.errors import UsageError
from engine.service.commands import register
from engine.service.jobs import Context, JobSpec, OnLane, Outcome, Steps
from engine.workspace import Opened, Workspace


class CountLayers(p.Command, frozen=True):
    """How many layers have a kind."""

    kinds: tuple[str, ...] = ()


def _accepted(context: Context[Workspace], command: CountLayers) -> CountLayers:
    if "" in command.kinds:
        raise UsageError("a kind has a name")
    return command


def _steps(context: Context[Workspace], command: CountLayers) -> Steps:
    import threading

    yield p.Notice("info", f"begun on {threading.current_thread().name}")
    yield OnLane("export")
    yield p.Notice("info", f"goes on on {threading.current_thread().name}")
    wanted = command.kinds
    rows = context.workspace.need(Opened).rows
    found = [name for name in rows if name.endswith(wanted or ("",))]
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


class CountForEver(p.Command, frozen=True):
    """Ends when it is cancelled."""


def _for_ever(context: Context[Workspace], command: CountForEver) -> Steps:
    done = 0
    while True:
        yield p.Progress(job=context.job, done=done, total=0)
        done += 1


FOR_EVER = JobSpec(
    command=CountForEver, kind="for-ever", title=lambda command: "for ever", urgency=9,
    steps=_for_ever,
)  # fmt: skip

register(COUNT)
register(FOR_EVER)
