"""What was swept so far, and what is being swept: by format and direction."""

from __future__ import annotations

from engine.protocol import Direction
from engine.session import Job, Session

OTHER: dict[Direction, Direction] = {"degrade": "restore", "restore": "degrade"}


def swept(session: Session, direction: Direction) -> list[str]:
    """Formats whose effects are known in a direction: those that were measured come first."""
    known = dict.fromkeys((*session.measured, *session.estimated))
    lead = f"{direction}/"
    return [key.removeprefix(lead) for key in known if key.startswith(lead)]


def sweeping(session: Session, format: str, direction: Direction) -> Job | None:
    """The sweep of a format and direction that is running or waiting; None where there is none.

    The engine's title of a sweep names its formats, and ``restore`` where that is its direction.
    """
    for job in session.jobs.values():
        if job.kind == "sweep" and job.status == "running":
            words = job.title.split()
            if format in words and ("restore" in words) == (direction == "restore"):
                return job
    return None


def measured(session: Session, format: str, direction: Direction) -> int:
    """How many layers were measured alone."""
    return sum(fact is not None for fact in session.measured.get(f"{direction}/{format}", []))


def whole(session: Session, format: str, direction: Direction) -> bool:
    """Whether every layer was measured that can hold the format."""
    if f"{direction}/{format}" in session.additivity:
        return True
    kept = {each.layer for each in session.fallbacks if each.format == format}
    return measured(session, format, direction) + len(kept) >= len(session.layers.names)


def unfinished(session: Session, format: str, direction: Direction) -> tuple[str, Direction] | None:
    """The first sweep that was begun, is not whole and is not running any more.

    Looked at are what is shown, and the formats that are swept on opening.
    """
    wanted = session.settings.sweep_formats
    looked_at: list[tuple[str, Direction]] = [(format, direction)]
    looked_at += [(each, "degrade") for each in wanted]
    for each, way in looked_at:
        begun = measured(session, each, way) > 0 or (each in wanted and way == "degrade")
        if begun and not whole(session, each, way) and sweeping(session, each, way) is None:
            return each, way
    return None
