"""Widgets of a few lines of styled text."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content
from textual.scrollbar import ScrollBarRender
from textual.widget import Widget

from qtui.views.text import Words as Words


def content(words: Words) -> Content:
    """The pieces as one text."""
    return Content.assemble(*words)


def cells(words: Words) -> int:
    """Width of the pieces."""
    return content(words).cell_length


def spread(left: Words, right: Words, width: int) -> Words:
    """``left`` and ``right`` at the ends of a line; ``left`` alone if both do not fit."""
    gap = width - cells(left) - cells(right)
    return [*left, (" " * gap, ""), *right] if gap >= 1 and right else left


class PlainScrollBar(ScrollBarRender):
    """A scroll bar of coloured spaces, for terminals that know ASCII alone."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "]
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "]


class Lines(Widget):
    """Lines of text, redrawn only where they changed."""

    DEFAULT_CSS = """
    Lines { height: 1; background: $background; color: $foreground; }
    """

    def __init__(self, *, id: str | None = None, wrap: bool = False) -> None:
        super().__init__(id=id)
        self.lines: list[Words] = []
        self.wrap = wrap
        """Whether long lines wrap instead of being cut."""

    def set_lines(self, lines: list[Words]) -> None:
        """Show these lines; the screen is laid out again only if their height changed."""
        if lines != self.lines:
            before, self.lines = self.lines, lines
            height = self.styles.height
            follows = height is not None and height.is_auto
            self.refresh(layout=follows and self._height(before) != self._height(lines))

    def _height(self, lines: list[Words]) -> int:
        """Lines of the screen that these take."""
        width = self.content_size.width
        if not self.wrap or not width:
            return len(lines)
        return _joined(lines).get_height(self.styles.get_rules(), width)

    @property
    def text(self) -> str:
        """What is shown, without its styles."""
        return "\n".join("".join(text for text, _ in line) for line in self.lines)

    def render(self) -> Content:
        """The lines as one text."""
        if self.wrap:
            return _joined(self.lines)
        width = self.content_size.width
        return Content("\n").join(content(line).truncate(width) for line in self.lines)


def _joined(lines: list[Words]) -> Content:
    return Content("\n").join(content(line) for line in lines)
