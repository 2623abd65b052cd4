"""The list of recipes tried: the list above, what two of them have different below."""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.app import ComposeResult

from engine import protocol as p
from engine.session import Dirty, Session
from engine.session.tried import Line, listed
from qtui.screens.session_screen import SessionScreen
from qtui.views.recipes import apart, called, heading, line_of_list, side_by_side
from qtui.views.text import UNICODE, Glyphs
from qtui.widgets.line import Lines, Words
from qtui.widgets.prompt.prompt import Prompt, open_prompt
from qtui.widgets.prompt.verdict import Verdict

SHOWN: frozenset[Dirty] = frozenset(
    {"layers", "holds", "recipe", "baseline", "measured", "model", "checkpoint"}
)


class Recipes(SessionScreen):
    """Recipes tried, in the order in which they were first tried."""

    CSS = """
    #tried { height: auto; max-height: 50%; padding: 0 1; }
    #apart { height: 1fr; padding: 0 1; border-top: solid $panel; }
    Recipes.-ascii #apart { border-top: ascii $panel; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(glyphs)
        self.list, self.apart = Lines(id="tried"), Lines(id="apart")
        self.message.legend = (
            f"{glyphs.frontier} none measured is smaller with less KL",
            f"{glyphs.changed} current", f"{glyphs.marked} compared with",
        )  # fmt: skip
        self.lines: list[Line] = [Line(0, "", None, 0, True, False)]
        self._on: int | None = None
        """Number of the recipe under the cursor; None for the current one."""
        self._marked: int | None = None
        """Number of the one that others are compared with; None for the current one."""
        self._top = self._top_apart = 0
        self._listed = 0
        """Recipes that the list shows."""
        self._named: Callable[[str], None] = lambda name: None

    def compose(self) -> ComposeResult:
        """The list, the differences, the foot."""
        yield self.list
        yield self.apart
        yield from self.foot()

    def on_resize(self, event: events.Resize) -> None:
        """Lay the lines out for the new size."""
        self.call_after_refresh(self._write)

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if not whole and not dirty & SHOWN:
            return
        self.lines = listed(session) if session.layers.names else self.lines[:1]
        self._write()

    # --- the cursor ---------------------------------------------------------------------------

    @property
    def line(self) -> Line:
        """The recipe under the cursor."""
        return self._find(self._on)

    @property
    def base(self) -> Line:
        """The recipe that others are compared with."""
        return self._find(self._marked)

    def _find(self, number: int | None) -> Line:
        """A line by its number, else the current one."""
        for line in self.lines:
            if line.number == number:
                return line
        return next((line for line in self.lines if line.current), self.lines[0])

    def move(self, rows: int) -> None:
        """Move the cursor."""
        at = self.lines.index(self.line) + rows
        self._on = self.lines[max(0, min(at, len(self.lines) - 1))].number
        self._top_apart = 0
        self._write()

    def mark(self) -> None:
        """Compare with the recipe under the cursor; if it is that already, with the current one."""
        self._marked = None if self.line == self.base else self.line.number
        self.say("info", f"compared with {called(self.session, self.base)}")
        self._write()

    def scroll_apart(self, pages: int) -> None:
        """Scroll the differences."""
        step = max(1, self._room_apart)
        self._top_apart = max(0, self._top_apart + pages * step)
        self._write()

    @property
    def _room_apart(self) -> int:
        """Lines for layers, below the figures of both recipes and the number of layers."""
        return self.apart.size.height - 5

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        return called(self.session, self.line), bool(self.session.layers.names)

    # --- drawing ------------------------------------------------------------------------------

    def _write(self) -> None:
        width, height = self.app.size.width - 2, max(2, self.app.size.height // 2 - 1)
        if not self.session.layers.names:
            self.list.set_lines([[("no recipe was tried yet", "$dim")]])
            return
        at = self.lines.index(self.line)
        room = height - 1
        self._top = max(min(self._top, at), at - room + 1, 0)
        shown = self.lines[self._top : self._top + room]
        if len(shown) != self._listed:  # the differences have the room that the list leaves
            self._listed = len(shown)
            self.call_after_refresh(self._write)
        self.list.set_lines(
            [
                heading(width, self.glyphs),
                *(
                    line_of_list(
                        self.session, line, width, self.glyphs,
                        here=line is self.line, marked=line.number == self._marked,
                    )
                    for line in shown
                ),
            ]
        )  # fmt: skip
        self.apart.set_lines(self._differences())

    def _differences(self) -> list[Words]:
        if self.line == self.base:
            keys = self.key("recipes.compare")
            said = f"{keys} marks a recipe to compare others with; else it is the current one"
            return [[(said, "$dim")]]
        width = self.app.size.width - 2
        head = side_by_side(self.session, self.base, self.line, width, self.glyphs)
        differing, *layers = apart(self.session, self.base, self.line, self.glyphs)
        head.append(differing)
        room = max(1, self._room_apart)
        self._top_apart = max(0, min(self._top_apart, len(layers) - room))
        shown = layers[self._top_apart : self._top_apart + room]
        left = len(layers) - self._top_apart - len(shown)
        keys = self.key("recipes.down_apart")
        said = f"{self.glyphs.ellipsis} {left} more below, {keys}"
        return [*head, *shown, *([[(said, "$dim")]] if left > 0 else [])]

    # --- names --------------------------------------------------------------------------------

    def ask_name(self, named: Callable[[str], None]) -> None:
        """Ask for a name of the recipe under the cursor."""
        self._named = named
        line = self.line

        def judge(value: str) -> Verdict:
            name = " ".join(value.split())
            if any(other.name == name and other != line for other in self.lines if name):
                return Verdict(False, f"another recipe is called {name}")
            return Verdict(True, "" if name else "no name")

        open_prompt(
            self,
            Prompt("name", judge=judge, value=line.name, kind="recipe name", glyphs=self.glyphs),
        )

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """A name was typed."""
        self._named(event.value)

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Say what became of a change."""
        if isinstance(event, p.Refused) and event.command in ("TakeRecipe", "NameRecipe"):
            self.say("warning", event.message)
        return True
