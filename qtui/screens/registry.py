"""Which screens a session has: declared in their own folders, named here.

A screen is one folder in `qtui.screens` with a `ScreenSpec` called ``SCREEN``, and its module's
name in `MODULES`. A plugin calls `register_screen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from qtui.actions import ACTIONS, Action, toggles
from qtui.screens.spec import ScreenSpec

WORKBENCH = "workbench"
"""The screen that a session begins with, and that every other one returns to."""
MODULES = ("qtui.screens.workbench",)
"""Modules with a ``SCREEN``; imported when the first of them is needed."""

_registered: dict[str, ScreenSpec] = {}


def register_screen(spec: ScreenSpec) -> None:
    """Add a screen to every session that is opened from now on.

    Raises:
        ValueError: an action has that id already.
    """
    taken = {action.id for action in ACTIONS} | screens().keys()
    if spec.action.id in taken:
        raise ValueError(f"an action is called {spec.action.id!r} already: choose another id")
    _registered[spec.action.id] = spec


def forget_screen(id: str) -> None:
    """Take a registered screen away."""
    _registered.pop(id, None)


def screens() -> dict[str, ScreenSpec]:
    """Every screen by the id of the action that shows it, the workbench first."""
    declared: list[ScreenSpec] = [import_module(name).SCREEN for name in MODULES]
    return {spec.action.id: spec for spec in declared} | _registered


def actions_of(spec: ScreenSpec, keys: Mapping[str, str]) -> list[Action]:
    """Every action that a screen has, with its usual keys; ``keys`` are a profile's.

    The workbench has all of `ACTIONS` and the profile's toggles, another screen those that are
    everywhere, and its own. The actions that show screens come after them.
    """
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
