"""Finished checkpoints compared with the open one: scores, what is wrong, layers worth keeping."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.moving import pages, steps
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The list of finished checkpoints with what runs its actions."""
    from qtui.screens.comparison.actions import ComparisonActions
    from qtui.screens.comparison.screen import Comparison

    screen = Comparison(context.glyphs)
    ComparisonActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action(
        "comparison", "C", "Compare finished checkpoints", "Engine",
        words="quantised artefact gptq awq gguf original restore verify check",
    ),
    make,
    (
        *steps("comparison"),
        *pages("comparison"),
        Action(
            "comparison.show", "enter", "Open it, or show the layer", "View", "show", rank=1,
            place=1,
        ),
        Action("comparison.add", "a", "Compare another", "Engine", "add", rank=2, place=2),
        Action(
            "comparison.restore", "g", "Give layers back: what each wins", "Engine", "give back",
            rank=3, place=3, words="restore keep sensitivity",
        ),
    ),
)  # fmt: skip
"""The comparison as a screen of a session."""
