"""Tasks answered by reference and recipe, and the recipe on several texts, as a screen."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.moving import pages, steps
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The list of what was asked with what runs its actions."""
    from qtui.screens.tasks.actions import TasksActions
    from qtui.screens.tasks.screen import Tasks

    screen = Tasks(context.glyphs)
    TasksActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action(
        "tasks", "B", "Tasks and texts of the recipe", "Engine",
        words="benchmark accuracy flips lm-eval domain position perplexity kld divergence",
    ),
    make,
    (
        *steps("tasks"),
        *pages("tasks"),
        Action("tasks.answer", "a", "Answer tasks", "Engine", "tasks", rank=1, place=1),
        Action("tasks.texts", "o", "Score on texts, by position", "Engine", "texts", rank=2,
               place=2),
        Action("tasks.table", "g", "llama.cpp's tables of KL divergence", "Engine", "KLD", rank=3,
               place=3),
        Action("tasks.pane_down", "right_square_bracket", "Figures: down", "View", "more", rank=4,
               place=4),
        Action("tasks.pane_up", "left_square_bracket", "Figures: up", "View"),
    ),
)  # fmt: skip
"""The tasks and texts as a screen of a session."""
