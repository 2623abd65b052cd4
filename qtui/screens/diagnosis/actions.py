"""The actions of the diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from qtui.screens.session_screen import SessionScreen
from qtui.screens.shared_actions import SharedActions
from qtui.screens.verdict_taking import VerdictTaking
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.diagnosis.screen import Diagnosis


class DiagnosisActions(SharedActions):
    """Runs the actions of the diagnosis, and those of every screen."""

    def __init__(self, screen: Diagnosis, events: EventLog) -> None:
        super().__init__(screen, events)
        self.diagnosis = screen
        self.verdict = VerdictTaking(
            self,
            screen.verdict,
            up="diagnosis.up",
            enter="diagnosis.show",
            leaving="diagnosis.down",
        )

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        "diagnosis.up": lambda do: do.diagnosis.move(-1, 0),
        "diagnosis.down": lambda do: do.diagnosis.move(1, 0),
        "diagnosis.left": lambda do: do.diagnosis.move(0, -1),
        "diagnosis.right": lambda do: do.diagnosis.move(0, 1),
        "diagnosis.side": lambda do: do.diagnosis.other_side(),
        "diagnosis.figure": lambda do: do.diagnosis.next_figure(),
        "diagnosis.gallery": lambda do: do.diagnosis.toggle_gallery(),
        "diagnosis.show": lambda do: do.show(),
        "diagnosis.verdict": lambda do: do.verdict.take(),
    }
    """What runs an action, by its id."""

    def perform(self, id: str) -> None:
        """Run an action, or say why that is not possible."""
        if not self.verdict.took(id, first=self.diagnosis.on_top):
            super().perform(id)

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id == "diagnosis.verdict":
            return self.verdict.why_not()
        if id.startswith("diagnosis.") and not self.session.layers.names:
            return "no layers yet"
        if id == "diagnosis.show" and self.diagnosis.current is None:
            return "this is not about one layer"
        return super().why_not(id)

    def show(self) -> None:
        """Show the layer under the cursor in the table."""
        layer = self.diagnosis.current
        assert layer is not None
        self.screen.post_message(SessionScreen.ShowLayer(layer))
