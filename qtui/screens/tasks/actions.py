"""The actions of the screen of tasks and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine import protocol as p
from qtui.screens.moving import paging, stepping
from qtui.screens.shared_actions import SharedActions
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.tasks.screen import Tasks

ASKING = ("tasks.answer", "tasks.texts", "tasks.table")


class TasksActions(SharedActions):
    """Runs the actions of the screen of tasks and texts, and those of every screen."""

    def __init__(self, screen: Tasks, events: EventLog) -> None:
        super().__init__(screen, events)
        self.list = screen

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        **stepping("tasks"),
        **paging("tasks"),
        "tasks.answer": lambda do: do.list.ask_tasks(do.ask),
        "tasks.texts": lambda do: do.list.ask_texts(do.ask),
        "tasks.table": lambda do: do.ask(p.FindSymptoms(divergence=True)),
        "tasks.pane_down": lambda do: do.list.scroll_pane(1),
        "tasks.pane_up": lambda do: do.list.scroll_pane(-1),
    }
    """What runs an action, by its id."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id in ASKING and (why := self.no_recipe()):
            return why
        return super().why_not(id)
