"""Which screens a session has: declared in their own folders, named here.

A screen is one folder in `qtui.screens` with a `ScreenSpec` called ``SCREEN``, and its line in
`SCREENS`. A plugin calls `register_screen`; this module imports nothing of Textual, for plugins are
loaded by the engine too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from engine.errors import EngineError
from engine.plugins import load_plugins, resolve

if TYPE_CHECKING:
    from qtui.actions import Action
    from qtui.screens.spec import ScreenSpec

WORKBENCH = "workbench"
"""The screen that a session begins with, and that every other one returns to."""
SCREENS = (
    "qtui.screens.workbench:SCREEN",
    "qtui.screens.diagnosis:SCREEN",
    "qtui.screens.plan:SCREEN",
    "qtui.screens.recipes:SCREEN",
    "qtui.screens.comparison:SCREEN",
    "qtui.screens.symptoms:SCREEN",
    "qtui.screens.tasks:SCREEN",
    "qtui.screens.calibration:SCREEN",
)
"""Where each screen is declared; imported when the first of them is needed."""

_registered: list[str] = []


def register_screen(reference: str) -> None:
    """Add a screen to every session that is opened from now on.

    Args:
        reference: ``module:NAME`` of its `ScreenSpec`.
    """
    if reference not in _registered:
        _registered.append(reference)


def screens() -> dict[str, ScreenSpec]:
    """Every screen by the id of the action that shows it, the workbench first.

    Raises:
        EngineError: a plugin cannot be loaded, or two actions have one id.
    """
    from qtui.actions import ACTIONS

    load_plugins()
    taken = {action.id for action in ACTIONS}
    found: dict[str, ScreenSpec] = {}
    for reference in (*SCREENS, *_registered):
        spec = cast("ScreenSpec", resolve(reference))
        for action in (spec.action, *spec.actions):
            if action.id in taken:
                raise EngineError(f"{reference}: an action {action.id!r} is there already")
            taken.add(action.id)
        found[spec.action.id] = spec
    return found


def actions_of(spec: ScreenSpec, keys: Mapping[str, str]) -> list[Action]:
    """Every action that a screen has, with its usual keys; ``keys`` are a profile's.

    The workbench has all of `qtui.actions.ACTIONS` and the profile's toggles, another screen those
    that are everywhere, and its own. The actions that show screens come after them.
    """
    from qtui.actions import ACTIONS, toggles

    home = spec.action.id == WORKBENCH
    found = [action for action in ACTIONS if home or action.everywhere]
    found += spec.actions
    found += [each.action for each in screens().values() if not (home and each is spec)]
    return found + (toggles(keys) if home else [])


def known_keys(keys: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By screen, every action's id with its usual keys; ``keys`` are a profile's."""
    return {
        id: {action.id: action.keys for action in actions_of(spec, keys)}
        for id, spec in screens().items()
    }
