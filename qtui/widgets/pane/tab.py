"""What a tab of the side pane is: a view of the layer under the cursor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from engine import protocol as p
from engine.session import Session
from qtui.views.text import Glyphs
from qtui.widgets.line import Words


class TabContext(NamedTuple):
    """What a tab draws, and the room it has."""

    session: Session
    row: int
    """The layer under the cursor."""
    expert: int | None
    """One expert of a fused layer; None for the layer as a whole."""
    shown: p.EffectKey
    """Effects in the table."""
    width: int
    """Columns; a longer line is cut."""
    height: int
    """Lines that fit; more can be scrolled to."""
    glyphs: Glyphs
    key: Callable[[str], str] = str
    """The key of an action by its id, as a person reads it."""


def is_running(session: Session, measures: Callable[[p.AnyCommand], object]) -> bool:
    """Whether a running job measures what a tab shows, by its command."""
    jobs = session.jobs.values()
    return any(job.status == "running" and measures(job.command) for job in jobs)


def measures_errors(command: p.AnyCommand) -> bool:
    """Whether a command measures what a recipe does inside the model."""
    of_diagnosis = isinstance(command, p.Diagnose) and command.errors is not None
    return of_diagnosis or isinstance(command, p.MeasureErrors)


def nothing(session: Session, row: int, format: str) -> p.AnyCommand | None:
    """A tab whose figures come by themselves requests nothing."""
    del session, row, format
    return None


class Tab(NamedTuple):
    """One view of a layer."""

    id: str
    """Its title in the pane, and its name in the palette."""
    title: str
    """What it shows, in a few words."""
    lines: Callable[[TabContext], list[Words]]
    """Everything it says; where nothing is known, how to get it."""
    request: Callable[[Session, int, str], p.AnyCommand | None] = nothing
    """A command for figures that only this tab shows, once the cursor rests on a layer, by its row
    and the format whose effects are shown; None where they are there. A command is sent once: the
    same one is not repeated while the engine lives."""
