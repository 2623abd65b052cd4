"""Calibration sets by evaluation texts; what is against the one under the cursor, and its curve."""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.app import ComposeResult
from textual.containers import Container

from engine import protocol as p
from engine.errors import EngineError
from engine.session import Dirty, Session
from qtui.screens.session_screen import SessionScreen
from qtui.views.calibration import (
    METHOD,
    Row,
    complete_sets,
    curve,
    heading,
    line_of,
    method_of,
    parse_ask,
    rows_of,
    shown_texts,
    texts_of,
    warnings,
)
from qtui.views.doing import doing, visible
from qtui.views.progress import phase_words
from qtui.views.text import UNICODE, Glyphs, Words, fit, printable
from qtui.widgets.line import Lines
from qtui.widgets.prompt.prompt import Prompt, open_prompt
from qtui.widgets.prompt.verdict import Verdict

SHOWN: frozenset[Dirty] = frozenset({"layers", "model", "checkpoint", "calibrating", "jobs"})
SIDE_BY_SIDE = 120
"""Cells from which the curve and the warnings stand side by side."""


class Calibration(SessionScreen):
    """Sets by texts; below, warnings and the curve of one of them."""

    CSS = """
    #sets { height: 1fr; padding: 0 1; }
    #below { height: 1fr; layout: horizontal; border-top: solid $panel; }
    #curve { width: 2fr; height: 1fr; padding: 0 1; }
    #against { width: 3fr; height: 1fr; padding: 0 1; }
    Calibration.-narrow #below { layout: vertical; }
    Calibration.-narrow #curve, Calibration.-narrow #against { width: 1fr; }
    Calibration.-narrow #curve { height: auto; max-height: 5; }
    Calibration.-ascii #below { border-top: ascii $panel; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(glyphs)
        self.list, self.curve = Lines(id="sets"), Lines(id="curve")
        self.against = Lines(id="against")
        self.rows: list[Row] = []
        self.texts: list[str] = []
        self.method = METHOD
        """Whose scores are shown."""
        self._on = self._text = self._top = self._down = 0
        self._asked: Callable[[p.AnyCommand], None] = lambda command: None
        self._typed = ""
        """What was typed and is not accepted yet."""
        self.message.legend = (
            f"{glyphs.frontier} none is better", f"{glyphs.finding} something is against it",
            f"{glyphs.plus_minus} standard error",
        )  # fmt: skip

    def compose(self) -> ComposeResult:
        """The matrix, the curve and the warnings below it, the foot."""
        yield self.list
        with Container(id="below"):
            yield self.against
            yield self.curve
        yield from self.foot()

    def on_resize(self, event: events.Resize) -> None:
        """Lay the lines out for the new size."""
        self.set_class(event.size.width < SIDE_BY_SIDE, "-narrow")
        self.call_after_refresh(self._write)

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if not whole and not dirty & SHOWN:
            return
        before = self.row
        self.rows, self.texts = rows_of(session), texts_of(session)
        self.method = method_of(session)
        if before in self.rows:
            self._on = self.rows.index(before)
        self._on = max(0, min(self._on, len(self.rows) - 1))
        self._text = max(0, min(self._text, len(self.texts) - 1))
        self._write()

    # --- the cursor ---------------------------------------------------------------------------

    @property
    def row(self) -> Row | None:
        """The set under the cursor; None where none was compared."""
        return self.rows[self._on] if self._on < len(self.rows) else None

    @property
    def text(self) -> str:
        """The evaluation text under the cursor; empty where there is none."""
        return self.texts[self._text] if self._text < len(self.texts) else ""

    def move(self, rows: int) -> None:
        """Move the cursor to another set."""
        self._on = max(0, min(self._on + rows, len(self.rows) - 1))
        self._down = 0
        self._write()

    def move_text(self, columns: int) -> None:
        """Move the cursor to another text."""
        self._text = max(0, min(self._text + columns, len(self.texts) - 1))
        self._down = 0
        self._write()

    def page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.move(pages * max(1, self.list.size.height - 3))

    def scroll_pane(self, pages: int) -> None:
        """Scroll the warnings."""
        self._down = max(0, self._down + pages * max(1, self.against.size.height - 1))
        self._write()

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        row = self.row
        return ("no calibration set", False) if row is None else (row.set, True)

    # --- drawing ------------------------------------------------------------------------------

    def _write(self) -> None:
        width = self.app.size.width - 2
        now, row = self._now(width), self.row
        if row is None:
            self.list.set_lines(now or self._nothing())
            self.curve.set_lines([])
            self.against.set_lines([])
            return
        texts = shown_texts(self.texts, self._text, width)
        room = max(1, self.list.size.height - 2 - len(now))
        self._top = max(min(self._top, self._on), self._on - room + 1)
        body = [
            line_of(self.session, each, self.method, texts, width, self.glyphs, here=each == row)
            for each in self.rows[self._top : self._top + room]
        ]
        body += [[]] * (room - len(body))
        title: Words = [(fit(self._title(texts), width, self.glyphs), "bold")]
        head = heading(texts, self.text, width, self.glyphs)
        self.list.set_lines([title, head, *body, *now])
        self._write_below(row)

    def _title(self, texts: list[str]) -> str:
        said = f"{self.method} calibrated on each set"
        more = len(self.texts) - len(texts)
        return f"{said}, {more} more text{'s' if more > 1 else ''} at the sides" if more else said

    def _write_below(self, row: Row) -> None:
        session, glyphs = self.session, self.glyphs
        wide = self.curve.content_size.width or self.app.size.width - 2
        self.curve.set_lines(curve(session, row, self.method, self.text, wide, glyphs))
        wide = self.against.content_size.width or self.app.size.width - 2
        lines = warnings(session, row, self.method, self.text, wide, glyphs)
        height = max(1, self.against.size.height)
        self._down, shown = visible(lines, self._down, height, self.key("calibration.pane_down"))
        self.against.set_lines(shown)

    def _now(self, width: int) -> list[Words]:
        """What a comparison of sets is doing, if one is running."""
        return doing(
            self.session, (p.Calibrate,), width, self.glyphs,
            lambda job: (phase_words(job), printable(job.subject)),
        )  # fmt: skip

    def _nothing(self) -> list[Words]:
        key = self.key("calibration.add")
        return [
            [("Which text to calibrate on, and how much of it: sets side by side,", "")],
            [("by the KL that a method reaches with each on held-out text.", "")],
            [],
            [(f"{key} names sets, as in code,prose,random int4-g128+awq on code,prose", "$dim")],
        ]

    # --- naming sets --------------------------------------------------------------------------

    def ask_sets(self, asked: Callable[[p.AnyCommand], None]) -> None:
        """Ask for sets, a method and texts."""
        self._asked = asked
        self._open_prompt("")

    def _open_prompt(self, value: str) -> Prompt:
        def judge(value: str) -> Verdict:
            try:
                found = parse_ask(value)
            except EngineError as error:
                return Verdict(False, str(error))
            on = f" on {', '.join(found.texts)}" if found.texts else ""
            return Verdict(True, f"{found.method} with {len(found.sets)} sets{on}")

        prompt = Prompt(
            "compare sets", complete_sets, judge=judge, value=value, kind="calibrate",
            glyphs=self.glyphs,
        )  # fmt: skip
        open_prompt(self, prompt)
        return prompt

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """Sets were named."""
        self._typed = event.value
        self._asked(parse_ask(event.value))

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Say why a comparison was refused or failed."""
        if isinstance(event, p.Refused) and event.command == "Calibrate":
            self.say("warning", event.message)
            self._mend(event.message)
        elif isinstance(event, p.JobStarted) and event.kind == "calibrate":
            self._typed = ""
        elif isinstance(event, p.JobEnded) and event.kind == "calibrate":
            self.ended(event)
        return True

    def _mend(self, why: str) -> None:
        """Give back what was typed and refused, with the reason below it."""
        typed, self._typed = self._typed, ""
        if typed and self.is_current and not self.query(Prompt):
            prompt = self._open_prompt(typed)
            prompt.call_after_refresh(prompt.say, Verdict(False, why), loud=True)
