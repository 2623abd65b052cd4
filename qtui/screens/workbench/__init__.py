"""The workbench: its layout, its actions, its prompts."""

from __future__ import annotations

from qtui.actions import Action
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext, ScreenSpec


def make(context: ScreenContext) -> SessionScreen:
    """The workbench with what runs its actions."""
    from qtui.screens.workbench.actions import WorkbenchActions
    from qtui.screens.workbench.screen import Workbench

    bench = Workbench(context)
    WorkbenchActions(bench, context.commands)
    return bench


SCREEN = ScreenSpec(Action("workbench", "", "Layers and their effects", "View"), make)
