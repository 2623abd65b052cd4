"""The bottom of the screen: the last message, the scope of a toggle, and the key bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from rich.cells import cell_len
from textual import events
from textual.app import App
from textual.message import Message as TextualMessage
from textual.screen import Screen
from textual.timer import Timer

from engine.protocol import Level
from qtui.actions import HOLD, Action, bindings
from qtui.textual_internals import call_after
from qtui.views.text import UNICODE, Glyphs, fit, printable
from qtui.widgets.line import Lines, Words, cells

STYLES: dict[Level, str] = {"info": "$dim", "warning": "$warning", "error": "bold $error"}
MARKS: dict[Level, str] = {"info": " ", "warning": "!", "error": "x"}


class Message(Lines):
    """One line: what happened last, or what the table's marks mean; the scope of a toggle."""

    LINGER: ClassVar[float] = 8.0
    """Seconds that a message stays; a warning stays three times as long, an error until the next
    message."""

    DEFAULT_CSS = """
    Message { padding: 0 1; background: $surface; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.legend: tuple[str, ...] = (
            f"{glyphs.finding} outliers, NaN or Inf", f"{glyphs.changed} changed by hand",
            f"{glyphs.about} estimated", f"{glyphs.plus_minus} 95%",
        )  # fmt: skip
        """The screen's marks and what they mean, shown while there is no message."""
        self.said: tuple[Level, str] = "info", ""
        self.scope = ""
        """The scope in words."""
        self.many = False
        """Whether that is more than the layer under the cursor."""
        self._later: Timer | None = None

    def on_mount(self) -> None:
        """Show something from the first frame on."""
        self._write()

    def say(self, level: Level, message: str, lasts: float | None = None) -> None:
        """Replace the message; it stays ``lasts`` seconds, or the usual time."""
        self.said = level, " ".join(message.split())
        if self._later is not None:
            self._later.stop()
        if lasts is None:
            lasts = {"info": self.LINGER, "warning": 3 * self.LINGER}.get(level)
        self._later = None if lasts is None else call_after(self, lasts, self.clear)
        self._write()

    def explain(self, *legend: str) -> None:
        """Show other marks and their meaning while there is no message."""
        if legend != self.legend:
            self.legend = legend
            self._write()

    def clear(self) -> None:
        """Nothing is worth saying any more."""
        self.said = "info", ""
        self._write()

    def show_scope(self, words: str, many: bool) -> None:
        """Show the scope of a toggle; ``many`` where it is more than the cursor's layer."""
        if (words, many) != (self.scope, self.many):
            self.scope, self.many = words, many
            self._write()

    def _legend(self, room: int) -> str:
        """The marks that there is room for, each with all of its meaning."""
        shown = ""
        for each in self.legend:
            longer = f"{shown}   {each}" if shown else each
            if cell_len(longer) > room:
                break
            shown = longer
        return shown

    def on_resize(self) -> None:
        """Make use of the new room."""
        self._write()

    def _write(self) -> None:
        level, message = self.said
        width = self.content_size.width
        mark = f"{MARKS[level]} " if level != "info" else ""
        # The scope of a toggle of many layers is never cut for a message; that of one layer is.
        right = f"{self.glyphs.arrow} {self.scope}" if self.scope else ""
        most = width * 2 // 3 if self.many else width // 3
        right = fit(right, min(cell_len(right), most), self.glyphs)
        shown = printable(message)
        if not self.many and message and cell_len(mark + shown) + cell_len(right) + 2 > width:
            right = ""
        room = max(0, width - len(mark) - (cell_len(right) + 2 if right else 0))
        shown = fit(shown or self._legend(room), room, self.glyphs)
        words: Words = [(mark, STYLES[level]), (shown, STYLES[level])]
        if right:
            words.append((f"  {right}", "bold $held" if self.many else "$dim"))
        self.set_lines([words])


class KeyBar(Lines):
    """The keys that matter most, as they are bound now; as many as there is room for.

    A click on an entry does what its key does.
    """

    DEFAULT_CSS = """
    KeyBar { padding: 0 1; background: $panel; }
    """

    @dataclass
    class Pressed(TextualMessage):
        """An entry was clicked."""

        id: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.actions: Sequence[Action] = ()
        self.alone = False
        """Whether the side pane is alone on the screen: its own keys are shown then."""
        self._spans: list[tuple[int, int, str]] = []

    def show(self, actions: Sequence[Action]) -> None:
        """Show keys of these actions."""
        self.actions = actions
        self._write()

    def show_alone(self, alone: bool) -> None:
        """Show the keys that matter where the side pane is alone, or those of the whole screen."""
        if alone != self.alone:
            self.alone = alone
            self._write()

    def on_resize(self) -> None:
        """Make use of the new room."""
        self._write()

    def on_click(self, event: events.Click) -> None:
        """Do what the entry under the mouse says."""
        at = event.get_content_offset_capture(self).x
        for first, end, id in self._spans:
            if first <= at < end:
                self.post_message(self.Pressed(id))

    def _write(self) -> None:
        width = self.content_size.width
        named = [
            (action, *(action.alone if self.alone else (action.word, action.rank)))
            for action in self.actions
            if action.keys
        ]
        named = [each for each in named if each[1]]
        toggles = [
            (action.id, key)
            for action in self.actions
            if action.id.startswith(HOLD)
            for key in key_names(self.app, action)
        ]
        apart = width >= 140
        runs = [[each] for each in toggles] if apart else _runs(toggles)
        left = width - sum(len(_label(run)) + 1 for run in runs) - len("toggle  ")
        chosen = []
        for action, word, _ in sorted(named, key=lambda each: each[2]):
            needed = len(key_names(self.app, action)[0]) + len(word) + 3
            if needed <= left:
                chosen.append((action, word))
                left -= needed
        line: Words = []
        self._spans = []
        for run in runs:
            self._put(line, _label(run), "bold $primary", run[0][0] if len(run) == 1 else "")
            line.append((" ", ""))
        if runs:
            self._put(line, "toggle", "$dim", "hold")
            line.append(("  ", ""))
        for action, word in sorted(chosen, key=lambda each: each[0].place):
            begin = cells(line)
            line += [
                (key_names(self.app, action)[0], "bold $primary"),
                (f" {word}", "$dim"),
            ]
            self._spans.append((begin, cells(line), action.id))
            line.append(("  ", ""))
        self.set_lines([line])

    def _put(self, line: Words, words: str, style: str, id: str) -> None:
        begin = cells(line)
        line.append((words, style))
        if id:
            self._spans.append((begin, begin + len(words), id))


def key_names(app: App[Any], action: Action) -> list[str]:
    """The keys of an action as a person reads them."""
    return [app.get_key_display(binding) for binding in bindings([action])]


Toggle: TypeAlias = tuple[str, str]
"""An action's id and one of its keys."""


def _label(run: list[Toggle]) -> str:
    return run[0][1] if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}"


def _runs(toggles: list[Toggle]) -> list[list[Toggle]]:
    """Three or more digits in a row together: ``2-6``."""
    found: list[list[Toggle]] = []
    for toggle in toggles:
        key, last = toggle[1], found[-1][-1][1] if found else ""
        if key.isdigit() and last.isdigit() and int(key) == int(last) + 1:
            found[-1].append(toggle)
        else:
            found.append([toggle])
    return [part for run in found for part in ([run] if len(run) > 2 else [[one] for one in run])]


def bound_keys(screen: Screen[Any]) -> dict[str, tuple[str, str]]:
    """Keys and descriptions of a screen's bindings by their ids, first key first."""
    found: dict[str, tuple[str, str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if binding.id is None or not binding.description:
            continue
        key = screen.app.get_key_display(binding)
        if binding.id in found:
            key = f"{found[binding.id][0]} {key}"
        found[binding.id] = (key, binding.description)
    return found
