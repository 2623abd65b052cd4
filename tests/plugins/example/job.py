"""A job with its command: how many weights the layers of each kind have."""

from __future__ import annotations

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.service.commands import register as register_job
from engine.service.jobs import Context, JobSpec, Outcome, Steps
from engine.workspace import Opened, Workspace


class CountWeights(p.Command, frozen=True):
    """Count the weights of every kind of layer."""

    kinds: tuple[str, ...] = ()
    """Such as ``q_proj``; all kinds if empty."""


class WeightCounts(msgspec.Struct, frozen=True, tag_field="schema", tag="example.count/1"):
    """What the job returns, and the JSON document of ``qtui count``."""

    weights: dict[str, int]
    """By kind."""


def _accepted(context: Context[Workspace], command: CountWeights) -> CountWeights:
    if "" in command.kinds:
        raise UsageError("a kind is empty, expected a word such as q_proj")
    return command


def _steps(context: Context[Workspace], command: CountWeights) -> Steps:
    rows = list(context.workspace.need(Opened).rows.values())
    found: dict[str, int] = {}
    for done, row in enumerate(rows):
        yield p.Progress(job=context.job, done=done, total=len(rows), subject=row.name)
        if not command.kinds or row.kind in command.kinds:
            found[row.kind] = found.get(row.kind, 0) + row.parameters
    return Outcome(measured=len(found), result=WeightCounts(found))


COUNT = JobSpec(
    command=CountWeights,
    kind="count",
    title=lambda command: " ".join(["count", *command.kinds]),
    needs="checkpoint",
    urgency=1,
    accept=_accepted,
    steps=_steps,
)


def register() -> None:
    register_job(COUNT)
