"""The actions of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine import protocol as p
from engine.session import running
from qtui.screens.moving import paging, stepping
from qtui.screens.session_screen import SessionScreen
from qtui.screens.shared_actions import SharedActions
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.comparison.screen import Comparison

WORST = 10
"""Layers that are given back at a time, those that err most first."""


class ComparisonActions(SharedActions):
    """Runs the actions of the comparison, and those of every screen."""

    def __init__(self, screen: Comparison, events: EventLog) -> None:
        super().__init__(screen, events)
        self.list = screen

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        **stepping("comparison"),
        **paging("comparison"),
        "comparison.show": lambda do: do.show(),
        "comparison.add": lambda do: do.list.ask_path(do.compare),
        "comparison.restore": lambda do: do.restore(),
    }
    """What runs an action, by its id."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id.startswith("comparison.") and not self.session.layers.names:
            return "no layers yet"
        if id == "comparison.add" and (why := self.no_model()):
            return why
        if id in ("comparison.show", "comparison.restore") and self.list.item is None:
            return "no finished checkpoint was compared yet"
        if id == "comparison.restore":
            if why := self.no_model():
                return why
            if self._under_way():
                return "a comparison is running"
        return super().why_not(id)

    def _under_way(self) -> bool:
        return any(isinstance(job.command, p.Compare) for job in running(self.session))

    def show(self) -> None:
        """Open the checkpoint under the cursor, or show its layer in the table."""
        item = self.list.item
        assert item is not None
        if item.kind == "checkpoint":
            self.list.open(item.artefact)
        elif item.layer:
            self.screen.post_message(SessionScreen.ShowLayer(item.layer))

    def compare(self, path: str) -> None:
        """Compare one more finished checkpoint: a path from where the terminal is, or a hub id."""
        place = Path(path).expanduser()
        self.ask(p.Compare((str(place.absolute()) if place.exists() else path,)))

    def restore(self) -> None:
        """Measure what giving the worst layers of the checkpoint under the cursor back wins."""
        item = self.list.item
        assert item is not None
        compared = self.session.compared[item.artefact]
        done = len(compared.restored)
        self.ask(p.Compare((compared.opened.path,), restore=done + WORST))
