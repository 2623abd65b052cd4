"""Calibration sets compared: sets by evaluation texts, warnings, and KL over samples."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.moving import pages, steps
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The matrix of sets and texts with what runs its actions."""
    from qtui.screens.calibration.actions import CalibrationActions
    from qtui.screens.calibration.screen import Calibration

    screen = Calibration(context.glyphs)
    CalibrationActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action(
        "calibration", "I", "Compare calibration sets", "Engine",
        words="inputs gptq awq samples domain data text",
    ),
    make,
    (
        *steps("calibration"),
        Action("calibration.left", "left,h", "Text before", "Move"),
        Action("calibration.right", "right,l", "Next text", "Move"),
        *pages("calibration"),
        Action("calibration.add", "a", "Compare sets", "Engine", "sets", rank=1, place=1),
        Action(
            "calibration.more", "plus", "Twice the samples of this set", "Engine", "more samples",
            rank=2, place=2,
        ),
        Action("calibration.pane_down", "right_square_bracket", "Warnings: down", "View"),
        Action("calibration.pane_up", "left_square_bracket", "Warnings: up", "View"),
    ),
)  # fmt: skip
"""The calibration sets as a screen of a session."""
