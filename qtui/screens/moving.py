"""A cursor that moves up and down a list: the actions for it, and what runs them.

Every screen that is a list has them under its own name, so that its keys can be set apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtui.actions import Action

Handlers = dict[str, Callable[[Any], None]]


def steps(screen: str) -> tuple[Action, ...]:
    """Up and down, for the screen with this id; run by `stepping`."""
    return (
        Action(f"{screen}.up", "up,k", "Up", "Move"),
        Action(f"{screen}.down", "down,j", "Down", "Move"),
    )


def stepping(screen: str) -> Handlers:
    """What runs `steps`: the screen's ``move(rows)``."""
    return {
        f"{screen}.up": lambda do: do.screen.move(-1),
        f"{screen}.down": lambda do: do.screen.move(1),
    }


def pages(screen: str) -> tuple[Action, ...]:
    """A page up and down, for the screen with this id; run by `paging`."""
    return (
        Action(f"{screen}.page_up", "pageup", "Page up", "Move"),
        Action(f"{screen}.page_down", "pagedown", "Page down", "Move"),
    )


def paging(screen: str) -> Handlers:
    """What runs `pages`: the screen's ``page(pages)``."""
    return {
        f"{screen}.page_up": lambda do: do.screen.page(-1),
        f"{screen}.page_down": lambda do: do.screen.page(1),
    }
