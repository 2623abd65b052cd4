"""A recipe for a budget, and the frontier: what every size costs, and what simpler rules find."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.moving import pages, steps
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The plan with what runs its actions."""
    from qtui.screens.plan.actions import PlanActions
    from qtui.screens.plan.screen import Plan

    screen = Plan(context.glyphs, context.marks)
    PlanActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action(
        "plan", "p", "Plan for a budget", "Recipe", "plan", rank=55, place=45,
        words="mix mixed precision budget frontier bits optimise optimize best recipe",
    ),
    make,
    (
        *steps("plan"),
        *pages("plan"),
        Action("plan.budget", "b", "Another budget", "Recipe", "budget", rank=1, place=1),
        Action("plan.take", "enter", "Take this recipe", "Recipe", "take", rank=2, place=2),
        Action(
            "plan.measure", "m", "Measure and improve it", "Recipe", "measure", rank=3, place=3,
            words="refine iterate",
        ),
        Action("plan.down_apart", "right_square_bracket", "Changes: down", "View"),
        Action("plan.up_apart", "left_square_bracket", "Changes: up", "View"),
    ),
)  # fmt: skip
"""The plan, shown by ``p``."""
