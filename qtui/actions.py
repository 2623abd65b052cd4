"""Every action of the workbench: its id, its keys, what it says of itself, and when it cannot be.

The one registry: key bindings, the key bar, the help, the palette and ``keymap.toml`` are all made
from it. `qtui.screens.workbench.actions` does what an action says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from textual.binding import Binding

from qtui.user.keymap import UNBOUND
from qtui.views.text import printable

Group: TypeAlias = Literal["Move", "Choose", "Recipe", "Engine", "View", "Keep"]


class Action(NamedTuple):
    """Something a person can do, by key, by palette, or by a click."""

    id: str
    keys: str
    """Textual's names of keys, with commas between them; empty for none."""
    title: str
    group: Group
    word: str = ""
    """Its name in the key bar; empty where it has no place there."""


ACTIONS: tuple[Action, ...] = (
    Action("up", "up,k", "Up", "Move"),
    Action("down", "down,j", "Down", "Move"),
    Action("page_up", "pageup", "Page up", "Move"),
    Action("page_down", "pagedown", "Page down", "Move"),
    Action("first", "home,g", "First layer", "Move"),
    Action("last", "end,G", "Last layer", "Move"),
    Action("order", "o", "Sort by next column", "Move", "sort"),
    Action("reverse", "O", "Sort the other way", "Move"),
    Action("expand", "enter", "Experts of a fused row", "Move"),
    Action("filter", "slash", "Filter the rows", "Choose", "filter"),
    Action("scope", "t", "What a toggle touches", "Choose", "touches"),
    Action("mark", "space", "Mark, and go on", "Choose", "mark"),
    Action("mark_range", "v", "Mark from last mark to here", "Choose"),
    Action("mark_shown", "a", "Mark all rows shown", "Choose"),
    Action("mark_others", "i", "Swap marked and unmarked", "Choose"),
    Action("unmark", "escape", "Unmark all; then no filter", "Choose"),
    Action("hold", "equals_sign", "Any format, by name", "Recipe", "format"),
    Action("undo", "u", "Undo", "Recipe", "undo"),
    Action("redo", "U,ctrl+r", "Redo", "Recipe", "redo"),
    Action("sweep", "s", "Sweep: degrade or restore", "Engine", "restore"),
    Action("sweep_format", "S", "Sweep another format", "Engine"),
    Action("cancel", "x", "Cancel what is running", "Engine", "cancel"),
    Action("retry", "r", "Retry; go on with a sweep", "Engine"),
    Action("format", "c", "Effects of next format", "View"),
    Action("pane", "tab", "Pane: show or fold", "View", "pane"),
    Action("pane_down", "right_square_bracket", "Pane: scroll down", "View"),
    Action("pane_up", "left_square_bracket", "Pane: scroll up", "View"),
    Action("log_counts", "l", "Histogram: log or counts", "View"),
    Action("log", "n", "What happened, all of it", "View", "log"),
    Action("freeze", "z", "Freeze the display", "View"),
    Action("theme", "T", "Next theme", "View"),
    Action("palette", "colon,ctrl+p", "Every action, by name", "View", "all"),
    Action("help", "question_mark", "Help", "View", "help"),
    Action("suspend", "ctrl+z", "To the shell, fg returns", "View"),
    Action("quit", "q", "Quit", "View", "quit"),
    Action("save", "w", "Save table, plot or recipe", "Keep", "save"),
    Action("copy", "y", "Copy layer, or marked ones", "Keep", "copy"),
    Action("copy_table", "Y", "Copy the whole table", "Keep"),
)

HOLD = "hold."
"""What the id of a format's own key begins with."""


def toggles(keys: Mapping[str, str]) -> list[Action]:
    """Actions of a profile's keys: each lets the chosen layers hold a format."""
    found: dict[str, list[str]] = {}
    for key, format in keys.items():
        found.setdefault(format, []).append(key)
    return [
        Action(
            f"{HOLD}{format}",
            ",".join(bound),
            "Keep as stored" if format == "kept" else f"Hold {printable(format)}",
            "Recipe",
        )
        for format, bound in found.items()
    ]


def bindings(actions: Iterable[Action]) -> list[Binding]:
    """Key bindings of actions; every one runs ``do`` with the action's id."""
    found = []
    for action in actions:
        if action.keys:
            made = Binding(action.keys, f"do({action.id!r})", action.title, id=action.id)
            found += list(Binding.make_bindings([made]))
    return found


def remapped(actions: Iterable[Action], keymap: Mapping[str, str]) -> list[Action]:
    """The actions with the keys of a user's own map."""
    found = []
    for action in actions:
        keys = keymap.get(action.id, action.keys)
        found.append(action._replace(keys="" if keys == UNBOUND else keys))
    return found


def known_keys(keys: Mapping[str, str]) -> dict[str, str]:
    """Every action's id with its keys where nobody says otherwise; ``keys`` are a profile's."""
    return {action.id: action.keys for action in (*ACTIONS, *toggles(keys))}
