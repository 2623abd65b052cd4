"""A one-line input: no blinking cursor, no control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from rich.highlighter import Highlighter
from rich.text import Text
from textual import events
from textual.widgets import Input

from qtui.textual_internals import suggest
from qtui.views.text import printable

NAMED = frozenset({"slash", "backslash", "at", "minus", "plus", "underscore", "space"})
"""Keys whose names do not show which character they type."""


def one_line(text: str) -> str:
    """The first line of a pasted text that is not blank, without its control characters."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return "".join(char for char in line if unicodedata.category(char)[0] != "C").strip()


class Harmless(Highlighter):
    """Draws ``?`` for every control character; the value keeps it."""

    def highlight(self, text: Text) -> None:
        """Put the marks in their places."""
        if printable(text.plain) != text.plain:
            text.plain = "".join(char if printable(char) == char else "?" for char in text.plain)


class Entry(Input):
    """One line of input; every change is reported at once."""

    DEFAULT_CSS = """
    Entry, Entry:focus {
        width: 1fr; height: 1; border: none; padding: 0;
        background: $surface; background-tint: $foreground 0%; color: $foreground;
    }
    Entry > .input--cursor { background: $surface; color: $foreground; text-style: reverse; }
    Entry > .input--placeholder, Entry > .input--suggestion { color: $dim; }
    """

    def __init__(
        self,
        value: str = "",
        placeholder: str = "",
        *,
        heard: Callable[[str], None],
        submit: Callable[[], None],
        accept: Callable[[], bool] = lambda: False,
        id: str | None = None,
    ) -> None:
        """
        Args:
            heard: called with every new value, before the next key is handled.
            submit: what enter does.
            accept: what the right arrow does at the end of the line; false lets it pass.
        """
        # Before anything else: a value to begin with is heard while the line is being made.
        self._heard, self._submit, self._accept = heard, submit, accept
        super().__init__(
            value, placeholder, highlighter=Harmless(), select_on_focus=False, compact=True, id=id
        )
        self.cursor_blink = False

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Whether a key types something here, and so is no key of the screen."""
        return key in NAMED or super().check_consume_key(key, character)

    def watch_value(self, value: str) -> None:
        """Pass the new value on."""
        self._heard(value)

    def set_value(self, value: str) -> None:
        """Replace the value, with the cursor at its end."""
        self.value = value
        self.cursor_position = len(value)

    def suggest(self, text: str) -> None:
        """Show, greyed, how the line could go on; nothing where ``text`` does not begin with it."""
        longer = text.startswith(self.value) and text != self.value and self.value
        suggest(self, text if longer and printable(text) == text else "")

    def on_paste(self, event: events.Paste) -> None:
        """Paste in our way, not in Textual's."""
        self.paste(event.text)
        event.prevent_default().stop()

    def action_paste(self) -> None:
        """Paste what was copied inside qtui."""
        self.paste(self.app.clipboard)

    def paste(self, text: str) -> None:
        """Insert the first line of a text at the cursor, or replace the selection."""
        text = one_line(text)
        if self.selection.is_empty:
            self.insert_text_at_cursor(text)
        else:
            self.replace(text, *self.selection)

    def action_cursor_right(self, select: bool = False) -> None:
        """Go right; at the end, take what is offered."""
        if select or not self.cursor_at_end or not self._accept():
            super().action_cursor_right(select)

    def action_delete_left_all(self) -> None:
        """Clear the line."""
        self.value = ""

    async def action_submit(self) -> None:
        """Submit the line."""
        self._submit()
