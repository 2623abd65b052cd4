"""Overlays with something to read: the keys, and the notices."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen

from engine.protocol import Level
from qtui.keys import GROUPS
from qtui.text import Glyphs, printable
from qtui.widgets.line import Lines, PlainScrollBar, Words
from qtui.widgets.status import MARKS, STYLES, bindings


class Overlay(ModalScreen[None]):
    """Lines to read over the workbench; closed by the key that opened it, or escape."""

    DEFAULT_CSS = """
    Overlay { align: center middle; background: $background 60%; }
    Overlay > VerticalScroll {
        width: 76; max-width: 100%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 0 1;
        scrollbar-size-vertical: 1;
    }
    Overlay.-ascii > VerticalScroll { border: ascii $primary; }
    Overlay Lines { height: auto; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,n", "dismiss", "Close", id="close"),
    ]

    def __init__(self, lines: list[Words], glyphs: Glyphs) -> None:
        super().__init__(classes="-ascii" if glyphs.ascii else None)
        self.lines = lines
        self.glyphs = glyphs

    def compose(self) -> ComposeResult:
        """The lines in a box that scrolls."""
        with VerticalScroll() as box:
            if self.glyphs.ascii:
                box.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]
            text = Lines(wrap=True)
            text.set_lines(self.lines)
            yield text


class Help(Overlay):
    """The keys, as they are bound now."""

    def __init__(self, screen: Screen[None], glyphs: Glyphs) -> None:
        bound = bindings(screen)
        formats = tuple(id for id in bound if id.startswith("hold."))
        groups = dict(GROUPS, Recipe=formats + GROUPS["Recipe"])
        lines: list[Words] = []
        for group, ids in groups.items():
            lines += [[(group, "bold")]]
            for id in ids:
                if id in bound:
                    key, description = bound[id]
                    lines.append([(f"  {key:>16}  ", "bold $primary"), (description, "")])
        super().__init__(lines, glyphs)


class NoticeLog(Overlay):
    """All notices of this session."""

    def __init__(self, said: list[tuple[Level, str]], glyphs: Glyphs) -> None:
        super().__init__(
            [
                [(f"{MARKS[level]} ", STYLES[level]), (printable(" ".join(message.split())), "")]
                for level, message in said
            ]
            or [[("nothing was said yet", "$dim")]],
            glyphs,
        )
