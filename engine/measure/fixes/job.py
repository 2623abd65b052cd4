"""The jobs of fixes: trying them, and finding what was tried before."""

from __future__ import annotations

import math
from contextlib import suppress

import msgspec

from engine import protocol as p
from engine.diagnosis.worst import worst_layers
from engine.errors import FormatError, UsageError
from engine.formats.alternatives import alternatives
from engine.recipes.changes import canonical
from engine.service.jobs import Context, JobSpec, Steps
from engine.session import Session
from engine.workspace import Loaded, Workspace, needs


def _accepted(context: Context[Workspace], command: p.TryFixes) -> p.TryFixes:
    session = context.session
    (format,) = canonical([command.format or session.settings.sweep_formats[0]])
    if not 0 < command.forwards < math.inf:
        raise UsageError(f"{command.forwards:g} forward passes: expected more than 0")
    _known_layers(session, command.layers)
    layers = command.layers or tuple(worst_layers(session, format)[: command.worst])
    if not layers:
        raise UsageError(
            f"no effect of {format} is known yet, so none is the worst: name layers, or sweep first"
        )
    return msgspec.structs.replace(command, format=format, layers=layers)


def _known_layers(session: Session, layers: tuple[str, ...]) -> None:
    unknown = [name for name in layers if session.row(name) is None]
    if unknown:
        raise UsageError(f"the checkpoint has no layer {unknown[0]!r}")


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


def _asked(context: Context[Workspace], command: p.AskFixes) -> p.AskFixes:
    _known_layers(context.session, command.layers)
    if not command.format:
        return command
    (format,) = canonical([command.format])
    return msgspec.structs.replace(command, format=format)


def _known(context: Context[Workspace], command: p.AskFixes) -> Steps:
    from engine.measure.fixes.known import known_fixes

    assert context.snapshot is not None
    wanted = _wanted(context.snapshot, command)
    return (yield from known_fixes(context.workspace.need(Loaded), wanted))


def _wanted(session: Session, command: p.AskFixes) -> list[tuple[str, str]]:
    """Layers and formats that may have been tried."""
    found: list[tuple[str, str]] = []
    for layer in command.layers or session.fixes:
        formats = dict.fromkeys(session.fixes.get(layer, {}))
        if command.format and (row := session.row(layer)) is not None:
            with suppress(FormatError):  # it cannot hold the format: nothing was tried instead
                formats |= dict.fromkeys(alternatives(command.format, session.layers.shapes[row]))
        found += [(layer, format) for format in formats]
    return found


KNOWN_FIXES = JobSpec(
    command=p.AskFixes,
    kind="known fixes",
    title=lambda command: "fixes that were tried before",
    needs="model",
    lane="compute",  # calibration is set up there
    urgency=3,
    announced="never",
    repeated="join",
    snapshot=lambda command: True,
    accept=_asked,
    steps=_known,
)
