"""The actions of the list of recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine import protocol as p
from qtui.screens.moving import stepping
from qtui.screens.shared_actions import SharedActions
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.recipes.screen import Recipes


class RecipesActions(SharedActions):
    """Runs the actions of the list, and those of every screen."""

    def __init__(self, screen: Recipes, events: EventLog) -> None:
        super().__init__(screen, events)
        self.list = screen

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        **stepping("recipes"),
        "recipes.take": lambda do: do.take(),
        "recipes.compare": lambda do: do.compare(),
        "recipes.name": lambda do: do.name(),
        "recipes.down_apart": lambda do: do.list.scroll_apart(1),
        "recipes.up_apart": lambda do: do.list.scroll_apart(-1),
    }
    """What runs an action, by its id."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id.startswith("recipes.") and not self.session.layers.names:
            return "no layers yet"
        if id == "recipes.take" and self.list.line.current:
            return "it is the current recipe"
        if id == "recipes.name" and self.list.line.number == 0:
            return "the model as stored needs no name"
        return super().why_not(id)

    def take(self) -> None:
        """Go back to the recipe under the cursor."""
        self.app_wide("unfreeze")
        self.ask(p.TakeRecipe(self.list.line.number))

    def compare(self) -> None:
        """Compare with the recipe under the cursor; with the current one if it is that already."""
        self.list.mark()

    def name(self) -> None:
        """Ask for a name of the recipe under the cursor."""
        line = self.list.line
        self.list.ask_name(lambda name: self.ask(p.NameRecipe(line.number, name)))
