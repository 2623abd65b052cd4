"""The actions of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from engine import protocol as p
from qtui.screens.moving import paging, stepping
from qtui.screens.shared_actions import SharedActions
from qtui.views.eventlog import EventLog

if TYPE_CHECKING:
    from qtui.screens.plan.screen import Plan

FORWARDS = 20.0
"""Plain forward passes that measuring a plan may take."""


class PlanActions(SharedActions):
    """Runs the actions of the plan, and those of every screen."""

    def __init__(self, screen: Plan, events: EventLog) -> None:
        super().__init__(screen, events)
        self.plan = screen

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        **stepping("plan"),
        **paging("plan"),
        "plan.budget": lambda do: do.budget(),
        "plan.take": lambda do: do.take(),
        "plan.measure": lambda do: do.measure(),
        "plan.down_apart": lambda do: do.plan.scroll_apart(1),
        "plan.up_apart": lambda do: do.plan.scroll_apart(-1),
    }
    """What runs an action, by its id."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        if id.startswith("plan.") and not self.session.layers.names:
            return "no layers yet"
        if id in ("plan.budget", "plan.take", "plan.measure") and not self.plan.effects_known():
            return f"no effect is known yet: sweep first ({self.plan.key('jobs')} shows the jobs)"
        if id in ("plan.take", "plan.measure") and self.plan.row is None:
            return f"no plan yet: {self.plan.key('plan.budget')} asks for a budget"
        if id == "plan.measure" and self.session.model is None:
            return "the model is not loaded yet"
        return super().why_not(id)

    def budget(self) -> None:
        """Ask for a budget, and plan for it."""
        self.plan.ask_budget(self.ask_plan)

    def plan_for(self, budget: p.Budget) -> None:
        """Plan for a budget that was typed; the plan is shown already."""
        self.ask_plan(budget)

    def ask_plan(self, budget: p.Budget) -> None:
        """Plan from what is known."""
        self.ask(self._plan(budget, 0))

    def _plan(self, budget: p.Budget, forwards: float) -> p.Plan:
        """The command of the plan that is shown, with its pins, for another budget and the target
        that was chosen since."""
        command = self.plan.command or p.Plan(budget=budget)
        to = self.plan.marks.name if self.plan.marks.chosen else command.to
        served = command.served or (bool(command.to) and not to)
        return msgspec.structs.replace(
            command, budget=budget, forwards=forwards, to=to, served=served, ask=""
        )

    def take(self) -> None:
        """Take the recipe under the cursor; one of the frontier is planned first."""
        row, planned = self.plan.row, self.plan.planned
        assert row is not None
        assert planned is not None
        self.app_wide("unfreeze")
        if row.plan:
            self.ask(p.SetRecipe(planned.recipe))
            self.say("info", f"taken: {self.plan.key('undo')} goes back")
            return
        budget = self.plan.budget_of(row)
        self.plan.take_when_planned(budget, lambda recipe: self.ask(p.SetRecipe(dict(recipe))))
        self.ask_plan(budget)

    def measure(self) -> None:
        """Measure the plan under the cursor, and improve it."""
        row = self.plan.row
        assert row is not None
        assert self.plan.planned is not None
        budget = self.plan.planned.budget if row.plan else self.plan.budget_of(row)
        self.ask(self._plan(budget, FORWARDS))
        self.say("info", f"measuring a plan for {budget}: {self.plan.key('jobs')} shows it")
