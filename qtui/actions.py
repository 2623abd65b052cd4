"""Every action: its id, its keys, its title, its place in the key bar.

The one registry: key bindings, the key bar, the help, the palette and ``keymap.toml`` are all made
from it. `qtui.screens.shared_actions` runs the actions that every screen has, and
`qtui.screens.workbench.actions` those of the workbench. A screen declares the action that shows it,
and actions of its own, in its `qtui.screens.spec.ScreenSpec`.
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
    rank: int = 105
    """Importance in the key bar, the lowest first: what there is no room for is left out."""
    place: int = 135
    """Order in the key bar, from left to right."""
    everywhere: bool = False
    """Whether every screen of a session has it, not the workbench alone."""


ACTIONS: tuple[Action, ...] = (
    Action("up", "up,k", "Up", "Move"),
    Action("down", "down,j", "Down", "Move"),
    Action("page_up", "pageup", "Page up", "Move"),
    Action("page_down", "pagedown", "Page down", "Move"),
    Action("first", "home,g", "First layer", "Move"),
    Action("last", "end,G", "Last layer", "Move"),
    Action("order", "o", "Sort by next column", "Move", "sort", rank=110, place=90),
    Action("reverse", "O", "Sort the other way", "Move"),
    Action("expand", "enter", "Experts of a fused row", "Move"),
    Action("filter", "slash", "Filter the rows", "Choose", "filter", rank=40, place=20),
    Action("scope", "t", "Scope of a toggle", "Choose", "scope", rank=60, place=30),
    Action("mark", "space", "Mark, and go on", "Choose", "mark", rank=80, place=10),
    Action("mark_range", "v", "Mark from last mark to here", "Choose"),
    Action("mark_shown", "a", "Mark all rows shown", "Choose"),
    Action("mark_others", "i", "Swap marked and unmarked", "Choose"),
    Action("unmark", "escape", "Unmark all; then no filter", "Choose"),
    Action("hold", "equals_sign", "Any format, by name", "Recipe", "format", rank=90, place=40),
    Action("undo", "u", "Undo", "Recipe", "undo", rank=50, place=70, everywhere=True),
    Action("redo", "U,ctrl+r", "Redo", "Recipe", "redo", rank=160, place=80, everywhere=True),
    Action("sweep", "s", "Sweep: degrade or restore", "Engine", "restore", rank=30, place=50),
    Action("sweep_format", "S", "Sweep another format", "Engine"),
    Action(
        "cancel",
        "x",
        "Cancel what is running",
        "Engine",
        "cancel",
        rank=130,
        place=60,
        everywhere=True,
    ),
    Action("retry", "r", "Retry; go on with a sweep", "Engine", everywhere=True),
    Action("format", "c", "Effects of next format", "View"),
    Action("pane", "tab", "Pane: show or fold", "View", "pane", rank=70, place=100),
    Action("pane_down", "right_square_bracket", "Pane: scroll down", "View"),
    Action("pane_up", "left_square_bracket", "Pane: scroll up", "View"),
    Action("log_counts", "l", "Histogram: log or counts", "View"),
    Action(
        "log", "n", "What happened, all of it", "View", "log", rank=140, place=110, everywhere=True
    ),
    Action("freeze", "z", "Freeze the display", "View", everywhere=True),
    Action("theme", "T", "Next theme", "View", everywhere=True),
    Action(
        "palette",
        "colon,ctrl+p",
        "Every action, by name",
        "View",
        "all",
        rank=100,
        place=140,
        everywhere=True,
    ),
    Action("help", "question_mark", "Help", "View", "help", rank=10, place=150, everywhere=True),
    Action("suspend", "ctrl+z", "To the shell, fg returns", "View", everywhere=True),
    Action("quit", "q", "Quit", "View", "quit", rank=20, place=160, everywhere=True),
    Action("save", "w", "Save table, plot or recipe", "Keep", "save", rank=120, place=120),
    Action("copy", "y", "Copy layer, or marked ones", "Keep", "copy", rank=150, place=130),
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
