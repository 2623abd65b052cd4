"""The job that compares calibration sets."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine import protocol as p
from engine.errors import TextError, UsageError
from engine.formats.grammar import needs_calibration, parse_format
from engine.recipes.changes import canonical
from engine.recipes.given import given_recipe
from engine.service.jobs import Context, JobSpec, Resolved, Steps
from engine.texts.naming import on_disk
from engine.texts.sets import CHAT_PREFIX, GENERATED, NAMED
from engine.workspace import Loaded, Opened, Workspace, needs

NOT_ABSOLUTE = (".", "/", "~")
"""A set that begins like this is a path."""


def _accepted(context: Context[Workspace], command: p.Calibrate) -> p.Calibrate:
    if not command.sets:
        raise UsageError(f"name a calibration set: {known_sets()}, a file or a folder")
    canonical([command.method])
    format = parse_format(command.method)
    if not needs_calibration(format):
        other = "int4-g128" if format.kept else str(format)
        raise UsageError(
            f"{format} uses no calibration text, so every set gives the same: choose a method that "
            f"does, such as {other}+gptq or {other}+awq"
        )
    for option, values, least in (
        ("--samples", command.samples, 1),
        ("--seq-len", command.seq_lens, 2),
    ):
        if any(each < least for each in values):
            raise UsageError(f"{option} is {min(values)}, expected at least {least}")
    return msgspec.structs.replace(
        command,
        method=str(format),
        sets=tuple(dict.fromkeys(map(_located, command.sets))),
        texts=tuple(dict.fromkeys(map(_located, command.texts))),
        samples=tuple(sorted(set(command.samples))),
        seq_lens=tuple(sorted(set(command.seq_lens))),
    )


def known_sets() -> str:
    """The names of sets, for a sentence."""
    return ", ".join([*NAMED, *GENERATED])


def _located(asked: str) -> str:
    """A text by an absolute path if it is one, since an engine has another working folder."""
    chat = CHAT_PREFIX if asked.startswith(CHAT_PREFIX) else ""
    given = asked.removeprefix(chat)
    if given in NAMED or given in GENERATED:
        return asked
    try:
        found = on_disk(given)
    except RuntimeError as error:
        raise UsageError(f"{given}: there is no such user") from error
    if found is not None:
        path = os.path.normpath(found.path.absolute())
        return f"{chat}{path}:{found.rest}" if found.rest else f"{chat}{path}"
    if given.startswith(NOT_ABSOLUTE):
        raise TextError(f"{given}: no such file or folder")
    if "/" not in given and not Path(given).suffix:
        raise UsageError(
            f"there is no calibration set {given!r}: known are {known_sets()}; else name a file, a "
            "folder, or a dataset as OWNER/NAME"
        )
    return asked


def _given(context: Context[Workspace], command: p.Calibrate) -> Resolved:
    asked = p.Evaluate(command.method)
    return given_recipe(context.session, asked, tied=context.workspace.need(Opened).tied)


def _steps(context: Context[Workspace], command: p.Calibrate) -> Steps:
    from engine.measure.calibrating.comparing import compare_sets

    loaded = context.workspace.need(Loaded)
    return (yield from compare_sets(loaded, context.recipe, command, context.job))


CALIBRATE = JobSpec(
    command=p.Calibrate,
    kind="calibrate",
    title=lambda command: f"calibrate {command.method} on {', '.join(command.sets)}",
    needs="model",
    lane="compute",
    urgency=3,
    announced="when ready",  # layer names are final only once the model is loaded
    repeated="join",
    accept=_accepted,
    recipe=_given,
    memory=needs.of_passes(streams=2),
    steps=_steps,
)
