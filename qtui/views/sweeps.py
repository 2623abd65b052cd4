"""Progress of sweeps, by format and direction."""

from __future__ import annotations

from engine.protocol import Command, Direction, EffectKey, Sweep, Triage
from engine.session import Job, Session

OTHER: dict[Direction, Direction] = {"degrade": "restore", "restore": "degrade"}


def swept(session: Session, direction: Direction) -> list[str]:
    """Formats whose effects are known in a direction: those that were measured come first."""
    return [key.format for key in session.effects.known(direction)]


def formats_of(command: Command) -> tuple[str, ...]:
    """Canonical formats that an accepted command names for all layers."""
    return command.formats if isinstance(command, Triage | Sweep) else ()


def is_sweep_of(command: Command, format: str, direction: Direction) -> bool:
    """Whether a command is a sweep of a format in a direction."""
    return (
        isinstance(command, Sweep) and format in command.formats and command.direction == direction
    )


def sweeping(session: Session, format: str, direction: Direction) -> Job | None:
    """The sweep of all layers in a format and a direction, if it is running or waiting."""
    for job in session.jobs.values():
        command = job.command
        of_all = isinstance(command, Sweep) and (command.by, command.exact) == ("layer", "all")
        if job.status == "running" and of_all and is_sweep_of(command, format, direction):
            return job
    return None


def measured(session: Session, format: str, direction: Direction) -> int:
    """How many layers were measured alone."""
    column = session.effects.measured.get(EffectKey(direction, format), [])
    return len(column) - column.count(None)


def total(session: Session, direction: Direction) -> int:
    """How many layers a sweep is of: head and embedding are never quantised with all the others,
    so keeping them regains nothing."""
    blocks = session.layers.blocks
    return len(blocks) if direction == "degrade" else sum(block >= 0 for block in blocks)


def is_complete(session: Session, format: str, direction: Direction) -> bool:
    """Whether every layer was measured that can hold the format."""
    if EffectKey(direction, format) in session.effects.additivity:
        return True
    kept = {each.layer for each in session.fallbacks if each.format == format}
    return measured(session, format, direction) + len(kept) >= total(session, direction)


def unfinished(session: Session, format: str, direction: Direction) -> tuple[str, Direction] | None:
    """The first sweep that was started, is incomplete and not running.

    Checks what is shown, and the formats that are swept on opening.
    """
    looked_at: list[tuple[str, Direction]] = [(format, direction)]
    looked_at += [(each, "degrade") for each in session.settings.sweep_formats]
    for each, way in looked_at:
        begun = measured(session, each, way) > 0 or _was_interrupted(session, each, way)
        # Restore sweeps are only started by the user: an empty table says how.
        begun = begun or (way == "restore" and bool(each))
        if begun and not is_complete(session, each, way) and sweeping(session, each, way) is None:
            return each, way
    return None


def _was_interrupted(session: Session, format: str, direction: Direction) -> bool:
    """Whether a sweep of a format and direction was cancelled, or failed."""
    return any(
        job.status in ("cancelled", "failed") and is_sweep_of(job.command, format, direction)
        for job in session.jobs.values()
    )
