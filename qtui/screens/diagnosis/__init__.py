"""The diagnosis: verdict, findings that lead to their layers, and a map of blocks and kinds."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The diagnosis with what runs its actions."""
    from qtui.screens.diagnosis.actions import DiagnosisActions
    from qtui.screens.diagnosis.screen import Diagnosis

    screen = Diagnosis(context.glyphs, context.marks)
    DiagnosisActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action(
        "diagnosis", "D", "Diagnosis: findings and map", "View", "map", rank=65, place=105,
        words="findings heatmap heat map verdict why blocks kinds problems",
    ),
    make,
    (
        Action("diagnosis.up", "up,k", "Up", "Move"),
        Action("diagnosis.down", "down,j", "Down", "Move"),
        Action("diagnosis.left", "left,h", "Left in the map", "Move"),
        Action("diagnosis.right", "right,l", "Right in the map", "Move"),
        Action(
            "diagnosis.show", "enter", "Show layer; take the verdict", "View", "show", rank=1,
            place=1, words="recommended recipe mix",
        ),
        Action("diagnosis.side", "tab", "Map or findings", "View", "side", rank=2, place=2),
        Action(
            "diagnosis.verdict", "V", "Take the mix of the verdict", "Recipe",
            words="recommended recipe best mixed precision fix",
        ),
        Action(
            "diagnosis.figure", "c", "Map of the next figure, gallery of the next kind", "View",
            "figure", rank=3, place=3,
        ),
        Action(
            "diagnosis.gallery", "g", "Gallery: histograms of all layers of a kind", "View",
            "gallery", rank=4, place=4, words="histograms small multiples distribution",
        ),
    ),
)  # fmt: skip
"""The diagnosis, shown by ``D``."""
