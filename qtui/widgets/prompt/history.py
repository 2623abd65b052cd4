"""The history of submitted lines, for as long as the app runs."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from textual.app import App

REMEMBERED = 50
"""Lines of a kind, at most."""
_HISTORY: WeakKeyDictionary[App[object], dict[str, list[str]]] = WeakKeyDictionary()


def history(app: App[object], kind: str) -> list[str]:
    """Submitted lines of a kind, oldest first."""
    return _HISTORY.setdefault(app, {}).setdefault(kind, [])


def remember(app: App[object], kind: str, line: str) -> None:
    """Keep a line as the last of its kind; a blank one is not worth it."""
    if line.strip():
        lines = history(app, kind)
        lines[:] = [*(each for each in lines if each != line), line][-REMEMBERED:]
