"""Taking the mix of the verdict: by its key anywhere, or by enter on its line."""

from __future__ import annotations

from typing import Protocol

from engine import protocol as p
from engine.session import Session
from qtui.screens.session_screen import AppWide, SessionScreen
from qtui.widgets.frame.verdict import VerdictLine


class Doing(Protocol):
    """What runs a screen's actions, as the verdict needs it."""

    @property
    def screen(self) -> SessionScreen:
        """Whose actions they are."""

    @property
    def session(self) -> Session:
        """What is shown."""

    def say(self, level: p.Level, words: str) -> None:
        """Show a message at the foot."""

    def ask(self, command: p.AnyCommand) -> None:
        """Send the engine a command."""

    def app_wide(self, what: AppWide) -> None:
        """Have the app do something."""


class VerdictTaking:
    """The cursor on a verdict's line, which is above the first row, and what enter does there."""

    def __init__(self, do: Doing, line: VerdictLine, *, up: str, enter: str, leaving: str) -> None:
        """
        Args:
            do: runs the actions.
            line: the verdict.
            up: id of the action that reaches it from the first row.
            enter: id of the action that takes it.
            leaving: id of the action that goes back to the first row.
        """
        self.do, self.line = do, line
        self._up, self._enter, self._leaving = up, enter, leaving

    def why_not(self) -> str:
        """Why there is nothing to take; empty where there is."""
        found = self.line.found
        if found is None:
            return "no verdict yet: it comes once all layers are estimated"
        if not found.mix:
            return "the verdict knows no better format"
        return "it is the current recipe" if found.mix == self.do.session.changed else ""

    def take(self) -> None:
        """Set the recipe that the verdict found."""
        found = self.line.found
        assert found is not None
        self.leave()
        self.do.app_wide("unfreeze")
        self.do.ask(p.SetRecipe(found.mix))
        self.do.say("info", f"taken: {self.do.screen.key('undo')} goes back")

    def took(self, id: str, *, first: bool) -> bool:
        """Handle what is done on the line, or reaches it; whether there is nothing left to do.

        Args:
            id: of an action.
            first: whether the screen's own cursor is in the first row.
        """
        if not self.line.here:
            return id == self._up and first and self.reach()
        if id == self._up:
            return True
        if id == self._enter:
            if why := self.why_not():
                self.do.say("warning", why)
            else:
                self.take()
            return True
        action = next((each for each in self.do.screen.actions if each.id == id), None)
        if action is None or not action.everywhere:  # help and the like leave the cursor there
            self.leave()
        return id == self._leaving

    def reach(self) -> bool:
        """Put the cursor on the line; false where it has no mix to take."""
        if self.line.found is None or not self.line.found.mix:
            return False
        self.line.put_cursor(here=True)
        return True

    def leave(self) -> None:
        """Return to the screen's own cursor."""
        self.line.put_cursor(here=False)

    def clicked(self) -> None:
        """Put the cursor on the line, or take the mix if it is there already."""
        if self.line.here:
            self.took(self._enter, first=False)
        elif not self.reach():
            self.do.say("info", self.why_not())
