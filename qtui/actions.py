"""Every action: its id, its keys, its title, its place in the key bar.

Key bindings, key bar, help, palette and ``keymap.toml`` are all made from this one registry.
`qtui.screens.shared_actions` runs the actions that every screen has, and
`qtui.screens.workbench.actions` those of the workbench. A screen declares the action that shows it,
and actions of its own, in its `qtui.screens.spec.ScreenSpec`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from textual.binding import Binding

from qtui.user.commands import Command
from qtui.user.keymap import UNBOUND
from qtui.views.text import printable

Group: TypeAlias = Literal["Move", "Select", "Recipe", "Engine", "View", "Save"]


class Action(NamedTuple):
    """Something a person can do, by key, by palette, or by a click."""

    id: str
    keys: str
    """Textual key names, separated by commas; empty for none."""
    title: str
    group: Group
    word: str = ""
    """Its name in the key bar; empty if it is not in the key bar."""
    rank: int = 105
    """Importance in the key bar, lowest first: entries that do not fit are left out."""
    place: int = 135
    """Order in the key bar, from left to right."""
    everywhere: bool = False
    """Whether every screen of a session has it, not only the workbench."""
    words: str = ""
    """Other words that the palette finds it by."""
    alone: tuple[str, int] = ("", 0)
    """Its name and its rank in the key bar while the side pane is alone on the screen; no name if
    it is not there."""


class Choice(NamedTuple):
    """One of the values that an action can be given: a column to sort by, a theme, a scope."""

    id: str
    title: str
    """As in a list of the action's choices."""
    note: str = ""
    """Shown at the end of its line."""
    why_not: str = ""
    """Why it cannot be chosen now."""


CHOICE = ":"
"""Between an action's id and the id of one of its choices: ``order:kl``."""


ACTIONS: tuple[Action, ...] = (
    Action("up", "up,k", "Up", "Move"),
    Action("down", "down,j", "Down", "Move", place=5, alone=("layer", 2)),
    Action("page_up", "pageup", "Page up", "Move"),
    Action("page_down", "pagedown", "Page down", "Move"),
    Action("first", "home,g", "First layer", "Move", words="top"),
    Action("last", "end,G", "Last layer", "Move", words="bottom"),
    Action("back", "apostrophe", "Back to the layer before", "Move", words="return jump"),
    Action("order", "o", "Sort by a column", "Move", "sort", rank=110, place=90, words="rank"),
    Action("reverse", "O", "Reverse the order", "Move", words="sort ascending descending"),
    Action(
        "expand", "enter", "Expand; take the verdict", "Move",
        words="experts fused open recommended recipe mix",
    ),
    Action(
        "filter", "slash", "Filter the rows", "Select", "filter", rank=40, place=20,
        words="search find grep",
    ),
    Action(
        "scope", "t", "Next scope", "Select", "scope", rank=60, place=30,
        words="target layers block kind group",
    ),
    Action("scope_before", "T", "Scope before", "Select", words="previous target"),
    Action(
        "mark", "space", "Mark, and move down", "Select", "mark", rank=80, place=10,
        words="select tag",
    ),
    Action("mark_range", "v", "Mark from the last mark", "Select", words="select range"),
    Action("mark_shown", "a", "Mark all rows shown", "Select", words="select everything"),
    Action("mark_others", "i", "Invert the marks", "Select", words="select"),
    Action("unmark", "escape", "Clear marks, then filter", "Select", words="deselect reset"),
    Action(
        "hold", "equals_sign", "Set a format by name", "Recipe", "format", rank=90, place=40,
        words="quantise quantize bits mix precision toggle",
    ),
    Action(
        "target", "W", "Choose an export target", "Recipe",
        words="export ship checkpoint llm-compressor gptqmodel gguf llama torchao mlx serve",
    ),
    Action(
        "context", "", "Context and batch: memory with the cache", "Recipe",
        words="kv keys values cache memory card vram gpu tokens size fits",
    ),
    Action(
        "verdict", "V", "Take the mix of the verdict", "Recipe",
        words="recommended recipe best mixed precision fix",
    ),
    Action("undo", "u", "Undo", "Recipe", "undo", rank=50, place=70, everywhere=True),
    Action("redo", "U,ctrl+r", "Redo", "Recipe", "redo", rank=160, place=80, everywhere=True),
    Action(
        "sweep", "s", "Show degrade or restore", "View", "restore", rank=75, place=50,
        words="direction effects",
    ),
    Action(
        "sweep_format", "S", "Sweep a format", "Engine", "sweep", rank=30, place=55,
        words="measure sensitivity degrade restore queue",
    ),
    Action(
        "jobs", "J", "Jobs: running and waiting", "Engine", everywhere=True,
        words="queue progress order tasks",
    ),
    Action(
        "cancel", "x", "Cancel a job", "Engine", "cancel", rank=130, place=60,
        everywhere=True, words="stop end abort kill",
    ),
    Action("retry", "r", "Retry, or resume a sweep", "Engine", everywhere=True, words="restart"),
    Action(
        "activations", "A", "Activations: measure, show", "Engine",
        words="inputs outputs channels outliers massive tokens experts calibration",
        place=44, alone=("activations", 10),
    ),
    Action(
        "errors", "E", "Errors: measure, show", "Engine",
        words="outputs channels clipping drift injected propagated attention heads recipe",
        place=43, alone=("errors", 9),
    ),
    Action(
        "fixes", "F", "Fixes: try, take", "Recipe",
        words="better format smaller group clip gptq awq hadamard kernels megabyte improve",
        place=42, alone=("fixes", 7),
    ),
    Action(
        "fixes_worst", "", "Fixes: the worst ten layers", "Recipe",
        words="better format improve all",
    ),
    Action("format", "c", "Effects of the next format", "View", words="column compare"),
    Action(
        "pane", "tab", "Pane: show, alone, hide", "View", "pane", rank=70, place=100,
        alone=("hide", 5),
    ),
    Action(
        "tab", "full_stop", "Pane: next tab", "View", "tab", rank=100, place=102, alone=("tab", 1),
        words="activations errors groups clipping fixes drift view side",
    ),
    Action("tab_before", "comma", "Pane: tab before", "View", words="view side"),
    Action(
        "pane_down", "right_square_bracket", "Pane: scroll down", "View", place=103,
        alone=("scroll", 3),
    ),
    Action("pane_up", "left_square_bracket", "Pane: scroll up", "View"),
    Action("log_counts", "l", "Histogram: log or linear", "View", words="logarithm plot"),
    Action(
        "log", "n", "Full log", "View", "log", rank=140, place=110, everywhere=True,
        words="events messages history",
    ),
    Action("log_pane", "N", "Log: show or hide", "View", words="events messages section"),
    Action("freeze", "z", "Freeze the display", "View", everywhere=True, words="pause"),
    Action(
        "theme", "ctrl+t", "Next theme", "View", everywhere=True, words="colours colors dark light",
    ),
    Action(
        "palette", "colon,ctrl+p", "Command palette", "View", "all", rank=35, place=140,
        everywhere=True, words="commands search menu", alone=("all", 8),
    ),
    Action(
        "help", "question_mark,f1", "Help", "View", "help", rank=10, place=150, everywhere=True,
        words="keys manual legend", alone=("help", 4),
    ),
    Action(
        "redraw", "ctrl+l", "Redraw the screen", "View", everywhere=True, words="refresh repaint",
    ),
    Action("suspend", "ctrl+z", "Suspend (fg resumes)", "View", everywhere=True, words="shell"),
    Action(
        "quit", "q", "Quit; work goes on", "View", "quit", rank=20, place=160, everywhere=True,
        words="exit detach leave", alone=("quit", 6),
    ),
    Action(
        "stop", "Q", "Quit, and stop the engine", "View", everywhere=True, words="exit end kill",
    ),
    Action(
        "save", "w", "Save table, plot or recipe; export", "Save", "save", rank=120, place=120,
        words="write export file csv svg png screenshot",
    ),
    Action(
        "copy", "y", "Copy the layer or marks", "Save", "copy", rank=150, place=130,
        words="clipboard yank",
    ),
    Action("copy_table", "Y", "Copy the whole table", "Save", words="clipboard csv yank"),
)  # fmt: skip

HOLD = "hold."
"""Prefix of the action ids that set a format."""


def toggles(keys: Mapping[str, str]) -> list[Action]:
    """Actions of a profile's keys: each sets the format of the layers in scope."""
    found: dict[str, list[str]] = {}
    for key, format in keys.items():
        found.setdefault(format, []).append(key)
    return [
        Action(
            f"{HOLD}{format}",
            ",".join(bound),
            "Keep as stored" if format == "kept" else f"Set {printable(format)}",
            "Recipe",
        )
        for format, bound in found.items()
    ]


def own_commands(commands: Iterable[Command]) -> list[Action]:
    """Actions of the user's own shell commands; the keymap has their keys."""
    return [Action(each.id, "", printable(each.title), "Save", words="shell") for each in commands]


def bindings(actions: Iterable[Action]) -> list[Binding]:
    """Key bindings of actions; every one runs ``do`` with the action's id."""
    found = []
    for action in actions:
        if action.keys:
            made = Binding(action.keys, f"do({action.id!r})", action.title, id=action.id)
            found += list(Binding.make_bindings([made]))
    return found


def remapped(actions: Iterable[Action], keymap: Mapping[str, str]) -> list[Action]:
    """The actions with the keys of the user's keymap."""
    found = []
    for action in actions:
        keys = keymap.get(action.id, action.keys)
        found.append(action._replace(keys="" if keys == UNBOUND else keys))
    return found
