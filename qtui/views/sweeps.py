"""What was swept so far, and what is being swept: by format and direction."""

from __future__ import annotations

from collections.abc import Sequence

from engine.protocol import By, Direction, EffectKey
from engine.session import Job, Session

OTHER: dict[Direction, Direction] = {"degrade": "restore", "restore": "degrade"}


def swept(session: Session, direction: Direction) -> list[str]:
    """Formats whose effects are known in a direction: those that were measured come first."""
    return [key.format for key in session.effects.known(direction)]


def title_words(
    formats: Sequence[str], direction: Direction, by: By = "layer", exact: str = "all"
) -> list[str]:
    """Words of the engine's title of a sweep: what is not usual is named."""
    words = ["sweep", *formats]
    words += [direction] if direction != "degrade" else []
    words += ["by", by] if by != "layer" else []
    return [*words, exact] if exact != "all" else words


def sweeping(session: Session, format: str, direction: Direction) -> Job | None:
    """The sweep of all layers in a format and a direction, if it is running or waiting."""
    for job in session.jobs.values():
        words = job.title.split()
        same = _is_of(words, format, direction) and _of_all_layers(words)
        if job.kind == "sweep" and job.status == "running" and same:
            return job
    return None


def _is_of(words: list[str], format: str, direction: Direction) -> bool:
    """Whether a title is of a sweep of a format in a direction."""
    return format in words and ("restore" in words) == (direction == "restore")


def _of_all_layers(words: list[str]) -> bool:
    """Whether a sweep of this title measures every layer, each alone."""
    return not any(word in ("by", "none") or word.startswith("top:") for word in words)


def measured(session: Session, format: str, direction: Direction) -> int:
    """How many layers were measured alone."""
    column = session.effects.measured.get(EffectKey(direction, format), [])
    return sum(fact is not None for fact in column)


def total(session: Session, direction: Direction) -> int:
    """How many layers a sweep is of: head and embedding are never quantised with all the others,
    so that there is nothing to win back by keeping them."""
    blocks = session.layers.blocks
    return len(blocks) if direction == "degrade" else sum(block >= 0 for block in blocks)


def whole(session: Session, format: str, direction: Direction) -> bool:
    """Whether every layer was measured that can hold the format."""
    if EffectKey(direction, format) in session.effects.additivity:
        return True
    kept = {each.layer for each in session.fallbacks if each.format == format}
    return measured(session, format, direction) + len(kept) >= total(session, direction)


def unfinished(session: Session, format: str, direction: Direction) -> tuple[str, Direction] | None:
    """The first sweep that was begun, is not whole and is not running any more.

    Looked at are what is shown, and the formats that are swept on opening.
    """
    looked_at: list[tuple[str, Direction]] = [(format, direction)]
    looked_at += [(each, "degrade") for each in session.settings.sweep_formats]
    for each, way in looked_at:
        begun = measured(session, each, way) > 0 or _broken_off(session, each, way)
        # Nothing is measured of restoring but by hand: an empty table says how to go on.
        begun = begun or (way == "restore" and bool(each))
        if begun and not whole(session, each, way) and sweeping(session, each, way) is None:
            return each, way
    return None


def _broken_off(session: Session, format: str, direction: Direction) -> bool:
    """Whether a sweep of a format and direction was cancelled, or failed."""
    return any(
        job.kind == "sweep"
        and job.status in ("cancelled", "failed")
        and _is_of(job.title.split(), format, direction)
        for job in session.jobs.values()
    )
