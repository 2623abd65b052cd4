"""A selection list that draws only visible rows and sends only those that changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Region
from textual.message import Message
from textual.widget import Widget

from qtui.views.text import UNICODE, Glyphs
from qtui.widgets.line import Words, content


class Choices(Widget, can_focus=True):
    """Rows under a cursor, each drawn when it is on the screen."""

    DEFAULT_CSS = """
    Choices { height: 1fr; background: $background; color: $foreground; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", id="list.up"),
        Binding("down", "move(1)", "Down", id="list.down"),
        Binding("pageup", "page(-1)", "Page up", id="list.page_up"),
        Binding("pagedown", "page(1)", "Page down", id="list.page_down"),
        Binding("home", "first", "First", id="list.first"),
        Binding("end", "last", "Last", id="list.last"),
    ]

    @dataclass
    class Moved(Message):
        """The cursor moved to another row."""

        row: int

    @dataclass
    class Clicked(Message):
        """A row was clicked, ``times`` in a row."""

        row: int
        times: int

    def __init__(
        self,
        draw: Callable[[int, int], Words],
        glyphs: Glyphs = UNICODE,
        *,
        id: str | None = None,
    ) -> None:
        """
        Args:
            draw: a row's number and the cells there are for it, to what is shown.
        """
        super().__init__(id=id)
        self.draw, self.glyphs = draw, glyphs
        self.count = 0
        self.cursor = 0
        self.top = 0
        self.empty: Words = []
        """Shown while there are no rows."""

    def show(self, count: int, cursor: int | None = None) -> None:
        """Redraw with this many rows, the cursor where it was or on another row."""
        self.count = count
        self.cursor = max(0, min(self.cursor if cursor is None else cursor, count - 1))
        self._follow()
        self.refresh()

    @property
    def page(self) -> int:
        """Rows on the screen."""
        return max(1, self.content_size.height)

    def _follow(self) -> bool:
        """Bring the cursor's row onto the screen; whether the others had to move."""
        top = max(min(self.top, self.cursor), self.cursor - self.page + 1)
        top = max(0, min(top, self.count - self.page))
        moved, self.top = top != self.top, top
        return moved

    def move_to(self, row: int) -> None:
        """Set the cursor."""
        old, self.cursor = self.cursor, max(0, min(row, self.count - 1))
        if self._follow():
            self.refresh()
        else:
            for place in (old, self.cursor):
                self.refresh(Region(0, place - self.top, self.size.width, 1))
        if self.cursor != old:
            self.post_message(self.Moved(self.cursor))

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.move_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is on the screen."""
        self.move_to(self.cursor + pages * self.page)

    def action_first(self) -> None:
        """Move the cursor to the first row."""
        self.move_to(0)

    def action_last(self) -> None:
        """Move the cursor to the last row."""
        self.move_to(self.count - 1)

    def on_resize(self) -> None:
        """Keep the cursor on the screen."""
        self._follow()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll; the cursor stays on the screen."""
        self._wheel(event, 3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll; the cursor stays on the screen."""
        self._wheel(event, -3)

    def _wheel(self, event: events.MouseEvent, rows: int) -> None:
        event.stop()
        self.top = max(0, min(self.top + rows, self.count - self.page))
        self.refresh()
        self.move_to(max(self.top, min(self.cursor, self.top + self.page - 1)))

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row that was clicked."""
        if (row := self.top + event.y) < self.count:
            self.move_to(row)
            self.post_message(self.Clicked(row, event.chain))

    def render(self) -> Content:
        """The visible rows, and their position in the list."""
        width, height = self.content_size
        if not self.count:
            return content([("  ", ""), *self.empty]).truncate(width)
        scrolls = self.count > height
        thumb = max(1, height * height // self.count) if scrolls else 0
        first = (height - thumb) * self.top // max(1, self.count - height)
        lines = []
        for place, row in enumerate(range(self.top, min(self.top + height, self.count))):
            lines.append(self._line(row, width - scrolls))
            if scrolls:
                rail = self.glyphs.full if first <= place < first + thumb else " "
                lines[-1] += Content.assemble((rail, "$panel" if rail != "#" else "$dim"))
        return Content("\n").join(lines)

    def _line(self, row: int, width: int) -> Content:
        here = row == self.cursor
        mark = self.glyphs.cursor if here else " "
        line = content([(f"{mark} ", "bold $primary"), *self.draw(row, width - 2)])
        line = line.truncate(width, pad=True)
        return line.stylize_before("on $cursor") if here else line
