"""Prompts continued by reference and recipe: what differs, what is wrong, what cures it."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.moving import pages, steps
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The list of prompts with what runs its actions."""
    from qtui.screens.symptoms.actions import SymptomsActions
    from qtui.screens.symptoms.screen import Symptoms

    screen = Symptoms(context.glyphs)
    SymptomsActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action(
        "symptoms", "P", "Prompts: symptoms of the recipe", "Engine",
        words="generate generation text loop garble refusal continue side by side chat",
    ),
    make,
    (
        *steps("symptoms"),
        *pages("symptoms"),
        Action("symptoms.type", "a", "Type a prompt", "Engine", "prompt", rank=1, place=1),
        Action("symptoms.file", "o", "Prompts of a file", "Engine", "file", rank=2, place=2),
        Action("symptoms.sample", "t", "Greedy, or sampled at temperature .8", "Engine", "sample",
               rank=4, place=4),
        Action(
            "symptoms.why", "g", "Give layers back: which cure it", "Engine", "why",
            rank=3, place=3, words="restore cause cure layers",
        ),
        Action("symptoms.show", "enter", "Show the layer of the cause", "View", "layer", rank=5,
               place=5),
    ),
)  # fmt: skip
"""The prompts as a screen of a session."""
