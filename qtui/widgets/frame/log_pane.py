"""The end of the event log, newest at the bottom."""

from __future__ import annotations

from typing import ClassVar

from qtui.views.eventlog import EventLog
from qtui.views.text import UNICODE, Glyphs, fit
from qtui.widgets.line import Lines, Words, cells


class LogPane(Lines):
    """The last things that happened, with the time of each; a line each, cut where it is longer."""

    ROOM: ClassVar[int] = 5
    """Lines it takes, filled from the foot."""

    DEFAULT_CSS = """
    LogPane { height: 5; padding: 0 1; }
    """

    def __init__(self, log: EventLog, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.heard = log
        self.glyphs = glyphs
        self._shown: tuple[int, int, int] | None = None

    def show(self) -> None:
        """Draw what the log says now; nothing is done where it says the same as before."""
        width, height = self.content_size
        key = (self.heard.version, width, height)
        if key == self._shown or not width or not height:
            return
        self._shown = key
        lines = [self._cut(words, width) for words in self.heard.lines(self.glyphs, last=height)]
        empty: list[Words] = [[] for _ in range(height - len(lines))]
        self.set_lines(empty + lines)

    def on_mount(self) -> None:
        """Show what was logged before there was a pane."""
        self.show()

    def on_resize(self) -> None:
        """Make use of the new room."""
        self.show()

    def _cut(self, words: Words, width: int) -> Words:
        if cells(words) <= width:
            return words
        room = width - cells(words[:2]) - cells(words[3:])
        text, style = words[2]
        return [*words[:2], (fit(text, room, self.glyphs), style), *words[3:]]
