"""The foot of the screen: the last message, the keys, and the log of notices."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.cells import cell_len
from textual.screen import Screen
from textual.timer import Timer

from engine.protocol import Level
from engine.session import Session
from qtui.text import UNICODE, Glyphs, fit, printable
from qtui.widgets.line import Lines, Words

STYLES: dict[Level, str] = {"info": "$dim", "warning": "$warning", "error": "bold $error"}
MARKS: dict[Level, str] = {"info": " ", "warning": "!", "error": "x"}


def notices(session: Session) -> list[tuple[Level, str]]:
    """What a person was told, oldest first, fallbacks before the rest."""
    said: list[tuple[Level, str]] = [
        ("warning", f"{fallback.layer} does not hold {fallback.format}: {fallback.why}")
        for fallback in session.fallbacks
    ]
    return said + [(notice.level, notice.message) for notice in session.notices]


class Message(Lines):
    """One line: what happened last; once that is old news, what the table's marks mean."""

    LINGER: ClassVar[float] = 8.0
    """Seconds after which what is no warning gives way."""

    DEFAULT_CSS = """
    Message { padding: 0 1; background: $surface; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.said: tuple[Level, str] = "info", ""
        self._later: Timer | None = None

    def on_mount(self) -> None:
        """Show something from the first frame on."""
        self._write()

    def say(self, level: Level, message: str) -> None:
        """Show a message in place of the one before."""
        self.said = level, " ".join(message.split())
        if self._later is not None:
            self._later.stop()
        self._later = self.set_timer(self.LINGER, self.clear) if level == "info" else None
        self._write()

    def clear(self) -> None:
        """Nothing is worth saying any more."""
        self.said = "info", ""
        self._write()

    def _legend(self) -> str:
        g = self.glyphs
        return (
            f"{g.finding} outliers, NaN or Inf   {g.changed} changed by hand   "
            f"{g.about} predicted   {g.plus_minus} 95%"
        )

    def on_resize(self) -> None:
        """Make use of the new room."""
        self._write()

    def _write(self) -> None:
        level, message = self.said
        mark = f"{MARKS[level]} " if level != "info" else ""
        room = max(0, self.content_size.width - len(mark))
        shown = printable(message) or self._legend()
        if cell_len(shown) > room:
            shown = fit(shown, room, self.glyphs)
        self.set_lines([[(mark, STYLES[level]), (shown, STYLES[level])]])


class Notices(Lines):
    """The last notices, newest at the foot."""

    ROOM: ClassVar[int] = 5

    DEFAULT_CSS = """
    Notices { height: auto; padding: 0 1; border-top: solid $panel; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.session = Session()

    def show(self, session: Session) -> None:
        """Draw the session's notices."""
        self.session = session
        width = self.content_size.width
        lines: list[Words] = []
        for level, message in notices(session)[-self.ROOM :]:
            one_line = printable(" ".join(message.split()))
            lines.append(
                [(f"{MARKS[level]} ", STYLES[level]),
                 (fit(one_line, width - 2, self.glyphs), "" if level == "info" else STYLES[level])]
            )  # fmt: skip
        self.set_lines(lines)

    def on_resize(self) -> None:
        """Make use of the new room."""
        self.show(self.session)


class KeyBar(Lines):
    """The keys that matter most, as they are bound now; as many as there is room for."""

    DEFAULT_CSS = """
    KeyBar { padding: 0 1; background: $panel; }
    """
    ORDER = (
        "help", "quit", "sweep", "undo", "pane", "mark", "order", "cancel", "log", "redo",
    )  # fmt: skip

    def on_mount(self) -> None:
        """Read the keys as soon as there are any."""
        self.call_after_refresh(self.read)

    def on_resize(self) -> None:
        """Make use of the new room."""
        self.read()

    def read(self) -> None:
        """Read the bindings of the screen."""
        bound = bindings(self.screen)
        toggles = [key for id, (key, _) in bound.items() if id.startswith("hold.")]
        apart = " " if self.content_size.width >= 100 else ""
        shown = _runs(toggles)
        apart = apart if len(shown) == len(toggles) else " "
        entries = [(apart.join(shown), "toggle")] if toggles else []
        left = self.content_size.width - sum(len(k) + len(d) + 3 for k, d in entries)
        chosen = []
        for id in self.ORDER:
            key, description = bound.get(id, ("", ""))
            description = _word(description)
            needed = len(key) + len(description) + 3
            if key and needed <= left:
                chosen.append(id)
                left -= needed
        for id in ("mark", "sweep", "cancel", "undo", "redo", "order", "pane", "log"):
            if id in chosen:
                entries.append((bound[id][0], _word(bound[id][1])))
        for id in ("help", "quit"):
            if id in chosen:
                entries.append((bound[id][0], _word(bound[id][1])))
        line: Words = []
        for key, description in entries:
            line += [(key, "bold $primary"), (f" {description}  ", "$dim")]
        self.set_lines([line])


def _runs(keys: list[str]) -> list[str]:
    """Keys with three or more digits in a row as one: ``2-6``."""
    found: list[list[str]] = []
    for key in keys:
        last = found[-1][-1] if found else ""
        if key.isdigit() and last.isdigit() and int(key) == int(last) + 1:
            found[-1].append(key)
        else:
            found.append([key])
    return [part for run in found for part in (run if len(run) < 3 else [f"{run[0]}-{run[-1]}"])]


def _word(description: str) -> str:
    return description.split()[0].strip(":,").lower() if description else ""


def bindings(screen: Screen[Any]) -> dict[str, tuple[str, str]]:
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
