"""Overlays with something to read: the keys, and the notices."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen

from engine.protocol import Level
from qtui.text import printable
from qtui.widgets.line import Lines, Words
from qtui.widgets.status import MARKS, STYLES, bindings

GROUPS = {
    "Layers": ("up", "down", "page_up", "page_down", "first", "last", "mark", "unmark", "order"),
    "Recipe": ("undo", "redo"),
    "Engine": ("sweep", "cancel", "retry"),
    "View": ("format", "pane", "log_counts", "log", "help", "quit"),
}


class Overlay(ModalScreen[None]):
    """Lines to read over the workbench; closed by the key that opened it, or escape."""

    DEFAULT_CSS = """
    Overlay { align: center middle; background: $background 60%; }
    Overlay > VerticalScroll {
        width: 76; max-width: 100%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 0 1;
        scrollbar-size-vertical: 1;
    }
    Overlay Lines { height: auto; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,n", "dismiss", "Close", id="close"),
    ]

    def __init__(self, lines: list[Words]) -> None:
        super().__init__()
        self.lines = lines

    def compose(self) -> ComposeResult:
        """The lines in a box that scrolls."""
        with VerticalScroll():
            text = Lines()
            text.set_lines(self.lines)
            yield text


class Help(Overlay):
    """The keys, as they are bound now."""

    def __init__(self, screen: Screen[None]) -> None:
        bound = bindings(screen)
        toggles = tuple(id for id in bound if id.startswith("hold."))
        groups = dict(GROUPS, Recipe=toggles + GROUPS["Recipe"])
        lines: list[Words] = []
        for group, ids in groups.items():
            lines += [[(group, "bold")]]
            for id in ids:
                if id in bound:
                    key, description = bound[id]
                    lines.append([(f"  {key:>16}  ", "bold $primary"), (description, "")])
        super().__init__(lines)


class NoticeLog(Overlay):
    """All notices of this session."""

    def __init__(self, said: list[tuple[Level, str]]) -> None:
        super().__init__(
            [
                [(f"{MARKS[level]} ", STYLES[level]), (printable(" ".join(message.split())), "")]
                for level, message in said
            ]
            or [[("nothing was said yet", "$dim")]]
        )
