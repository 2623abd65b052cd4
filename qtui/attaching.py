"""The commands to send when attaching to an engine: only for what its session lacks."""

from __future__ import annotations

from collections.abc import Iterable

from engine import protocol as p
from engine.errors import FormatError
from engine.formats.grammar import parse_format
from engine.session import Session


def lacking(session: Session, source: str, settings: p.Settings) -> list[p.Command]:
    """Commands that open the checkpoint, run triage and sweep it, where this is not done yet.

    A running, queued or finished job counts as done; a failed or cancelled one is sent again.
    An engine that just started has no jobs: what its store knows is then found and not measured.

    Args:
        session: as the engine sent it.
        source: ``demo``, a folder, or a hub id.
        settings: that the interface was started with; an engine that has others says so.
    """
    asked = [job.command for job in session.jobs.values() if job.status in ("running", "done")]
    commands: list[p.Command] = []
    if session.settings != settings or not any(isinstance(each, p.Open) for each in asked):
        commands.append(p.Open(source, settings))
    triaged = [each.formats for each in asked if isinstance(each, p.Triage)]
    if not _covers(triaged, session.settings.formats):
        commands.append(p.Triage())
    swept = [
        each.formats
        for each in asked
        if isinstance(each, p.Sweep)
        and (each.direction, each.by, each.exact) == ("degrade", "layer", "all")
    ]
    if not _covers(swept, session.settings.sweep_formats):
        commands.append(p.Sweep())
    return commands


def _covers(done: Iterable[tuple[str, ...]], wanted: Iterable[str]) -> bool:
    """Whether one of these lists has all the formats that are wanted."""
    try:
        formats = {str(parse_format(text)) for text in wanted}
    except FormatError:
        return False  # the engine says what is wrong with it
    return any(formats <= set(each) for each in done)
