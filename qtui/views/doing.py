"""One line on what a screen's job is doing, and what is visible of lines that go on below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.session import Job, Session, running
from qtui.views.progress import phase_words, time_left
from qtui.views.text import Glyphs, Words, fit, printable


def titled(job: Job) -> tuple[str, ...]:
    """A job by its title and what it is at."""
    return printable(job.title), phase_words(job)


def doing(
    session: Session,
    commands: tuple[type, ...],
    width: int,
    glyphs: Glyphs,
    words: Callable[[Job], tuple[str, ...]] = titled,
) -> list[Words]:
    """A line on the first running job of these commands; none where none runs.

    Args:
        session: whose jobs.
        commands: types of those that are told of.
        width: of the line.
        glyphs: to draw with.
        words: what is said before the count and the time left.
    """
    for job in running(session):
        if isinstance(job.command, commands):
            count = f"{job.done:,.0f}/{job.total:,}" if job.total else ""
            said = "  ".join(part for part in (*words(job), count, time_left(job)) if part)
            return [[(fit(said, width, glyphs), "$primary")]]
    return []


def visible(lines: Sequence[Words], down: int, height: int, key: str) -> tuple[int, list[Words]]:
    """How far lines are scrolled, and those that show; the last says how many follow.

    Args:
        lines: all of them.
        down: how far they are to be scrolled, if there are so many.
        height: of what shows.
        key: that scrolls further.
    """
    down = max(0, min(down, len(lines) - height))
    shown = list(lines[down : down + height])
    if down + height < len(lines):
        shown[-1] = [(f"{len(lines) - down - height + 1} more lines: {key}", "$dim")]
    return down, shown
