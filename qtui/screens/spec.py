"""A screen declares the action that shows it, how it is made, and actions of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.profiles import Profile
from qtui.actions import Action
from qtui.screens.session_screen import SessionScreen
from qtui.user.commands import Command
from qtui.user.remembered import Remembered
from qtui.views.eventlog import EventLog
from qtui.views.text import Glyphs

if TYPE_CHECKING:
    from qtui.views.export_marks import ExportMarks


class ScreenContext(NamedTuple):
    """What a screen is made from."""

    source: str
    """``demo``, a folder, or a hub id."""
    profile: Profile
    """Its keys are bound to formats."""
    glyphs: Glyphs
    """What to draw with."""
    events: EventLog
    """What happened in the session, shared by its screens; kept up by the workbench."""
    marks: ExportMarks
    """The chosen export target, shared by its screens; kept up by the workbench."""
    keymap: Mapping[str, str] = {}
    """Keys of actions by their ids, where they are not the usual ones."""
    themes: Callable[[], Sequence[tuple[str, str]]] = lambda: ()
    """Names of the themes, with a few words about each."""
    remembered: Remembered = Remembered()
    """What an earlier run left."""
    commands: tuple[Command, ...] = ()
    """The user's own shell commands, which the workbench runs."""


class ScreenSpec(NamedTuple):
    """The declaration of a screen, beside its code: ``SCREEN`` in its folder's ``__init__``.

    The folder is imported before the first frame, so it imports its screen only inside ``make``.
    """

    action: Action
    """Shows the screen, and where it is shown already returns to the workbench; its id is the
    screen's name."""
    make: Callable[[ScreenContext], SessionScreen]
    """Makes the screen, when it is shown for the first time."""
    actions: tuple[Action, ...] = ()
    """Actions that this screen has and the others have not, with ids like ``map.zoom``."""
