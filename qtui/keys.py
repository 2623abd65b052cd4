"""Every key of the workbench, with the id under which it can be bound to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from textual.binding import Binding

from qtui.text import printable

WORKBENCH = [
    Binding("up,k", "move(-1)", "Up", id="up"),
    Binding("down,j", "move(1)", "Down", id="down"),
    Binding("pageup", "page(-1)", "Page up", id="page_up"),
    Binding("pagedown", "page(1)", "Page down", id="page_down"),
    Binding("home,g", "first", "First layer", id="first"),
    Binding("end,G", "last", "Last layer", id="last"),
    Binding("space", "mark", "Mark for the next toggle", id="mark"),
    Binding("escape", "unmark", "Unmark all", id="unmark"),
    Binding("u", "undo", "Undo", id="undo"),
    Binding("U,ctrl+r", "redo", "Redo", id="redo"),
    Binding("s", "sweep", "Sweep: measure every layer", id="sweep"),
    Binding("x", "cancel", "Cancel the running job", id="cancel"),
    Binding("o", "order", "Order of the rows", id="order"),
    Binding("c", "format", "Effects of next format", id="format"),
    Binding("l", "log_counts", "Histogram: log or counts", id="log_counts"),
    Binding("tab", "pane", "Pane: show or fold", id="pane"),
    Binding("n", "notices", "Notices, all of them", id="log"),
    Binding("r", "retry", "Retry what failed", id="retry"),
    Binding("question_mark", "help", "Help", id="help"),
    Binding("q", "leave", "Quit", id="quit", priority=True),
]

GROUPS = {
    "Layers": ("up", "down", "page_up", "page_down", "first", "last", "mark", "unmark", "order"),
    "Recipe": ("undo", "redo"),
    "Engine": ("sweep", "cancel", "retry"),
    "View": ("format", "pane", "log_counts", "log", "help", "suspend", "quit"),
}
"""Ids as the help lists them; the profile's own keys come first in the recipe's."""


def toggles(keys: Mapping[str, str]) -> Iterator[Binding]:
    """Bindings of a profile's keys: each lets the chosen layers hold a format."""
    for key, format in keys.items():
        words = "Keep as stored" if format == "kept" else f"Hold {printable(format)}"
        binding = Binding(key, f"hold({format!r})", words, id=f"hold.{key}")
        yield from Binding.make_bindings([binding])
