"""The job that compares finished checkpoints with the open one, their original."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.errors import UsageError
from engine.service.jobs import Context, JobSpec, Needs, Steps
from engine.workspace import Loaded, Opened, Workspace, needs


def _accepted(context: Context[Workspace], command: p.Compare) -> p.Compare:
    if not command.artefacts:
        raise UsageError("name a finished checkpoint to compare with this one")
    if command.restore < 0:
        raise UsageError(f"{command.restore} layers to restore: expected 0 or more")
    if command.alone and (command.score or command.restore):
        raise UsageError("without an original, finished checkpoints are looked at by their files")
    for path in (command.logits, command.save_logits):
        if path and not os.path.isabs(path):
            raise UsageError(f"{path!r} is not an absolute path: a logits file needs one")
    if command.logits and command.score:
        raise UsageError("a logits file takes the place of the original's run: leave out scores")
    if command.save_logits and not command.score:
        raise UsageError("the original's probabilities are those of its model: it needs scores")
    if command.restore and not command.score:
        raise UsageError("what restoring a layer wins is measured with the model: it needs scores")
    found = dict.fromkeys(map(_where, command.artefacts))
    return msgspec.structs.replace(command, artefacts=tuple(found))


def _where(source: str) -> str:
    """A folder by its absolute path: an engine's working folder is not the client's."""
    if source == "demo":  # the bundled checkpoint, as everywhere
        return source
    path = Path(os.path.expanduser(source))
    return os.path.normpath(path.absolute()) if path.exists() else source


def _needs(command: p.Compare) -> Needs:
    return "model" if command.score and not command.alone else "checkpoint"


def _steps(context: Context[Workspace], command: p.Compare) -> Steps:
    from engine.measure.compare.alone import look_at_files
    from engine.measure.compare.comparing import compare_files, compare_models

    workspace = context.workspace
    if command.alone:
        opened = workspace.need(Opened)
        return (yield from look_at_files(opened, command.artefacts, context.job, command.logits))
    if not command.score:
        opened = workspace.need(Opened)
        return (yield from compare_files(opened, command.artefacts, context.job, command.logits))
    return (
        yield from compare_models(
            workspace.need(Loaded),
            command.artefacts,
            command.restore,
            context.job,
            command.save_logits,
        )
    )


def _title(command: p.Compare) -> str:
    names = ", ".join(Path(each).name for each in command.artefacts)
    return f"{'look at' if command.alone else 'compare with'} {names}"


COMPARE = JobSpec(
    command=p.Compare,
    kind="compare",
    title=_title,
    needs=_needs,
    lane="compute",
    urgency=3,
    repeated="join",
    memory=needs.of_second_model,
    accept=_accepted,
    steps=_steps,
)
