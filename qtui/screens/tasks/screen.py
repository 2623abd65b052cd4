"""Tasks and texts: a list, and below it every figure of the one under the cursor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual import events
from textual.app import ComposeResult

from engine import protocol as p
from engine.errors import EngineError
from engine.session import Dirty, Session
from qtui.screens.session_screen import UNCHANGED, SessionScreen
from qtui.views.asked import (
    Entry,
    complete_texts,
    details,
    entries,
    heading,
    line_of,
    parse_texts,
)
from qtui.views.doing import doing, visible
from qtui.views.progress import about, phase_words
from qtui.views.sources import complete_path
from qtui.views.text import UNICODE, Glyphs, Words, fit, printable
from qtui.widgets.line import Lines
from qtui.widgets.prompt.prompt import Prompt, open_prompt
from qtui.widgets.prompt.verdict import Verdict

SHOWN: frozenset[Dirty] = frozenset({"layers", "model", "checkpoint", "symptoms", "jobs", "holds"})
ASKED = (p.FindSymptoms, p.MeasureTexts)
"""Commands whose jobs are shown while they run."""
KINDS = ("symptoms", "texts")
"""Kinds of those jobs."""
INTERVALS = "intervals are of 95%"
STANDARD_ERRORS = "{g.plus_minus} standard errors, positions taken for independent, as in llama.cpp"
"""What the uncertainties of llama.cpp's tables are."""


class Tasks(SessionScreen):
    """Tasks, texts and tables of recipes."""

    CSS = """
    Tasks #entries { height: 2fr; padding: 0 1; }
    Tasks #figures { height: 3fr; padding: 0 1; border-top: solid $panel; }
    Tasks.-ascii #figures { border-top: ascii $panel; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(glyphs)
        self.list, self.figures = Lines(id="entries"), Lines(id="figures")
        self.entries: list[Entry] = []
        self._done: list[str] = []
        """Jobs that the entries are of."""
        self._on = self._top = self._down = 0
        self._asked: Callable[[p.AnyCommand], None] = lambda command: None
        self._reads: Callable[[str], p.AnyCommand] = parse_texts
        self.message.legend = (INTERVALS,)

    def compose(self) -> ComposeResult:
        """The list, the figures below it, the foot."""
        yield self.list
        yield self.figures
        yield from self.foot()

    def on_resize(self, event: events.Resize) -> None:
        """Lay the lines out for the new size."""
        self.call_after_refresh(self._write)

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if not whole and not dirty & SHOWN:
            return
        done = [job.id for job in session.jobs.values() if job.status == "done" and job.result]
        if whole or done != self._done:
            before = self.entry
            self._done, self.entries = done, entries(session)
            same = [
                at
                for at, each in enumerate(self.entries)
                if before is not None
                and (each.kind, each.name, each.recipe) == (before.kind, before.name, before.recipe)
            ]
            self._on = same[0] if same else max(0, len(self.entries) - 1)
        self._write()

    @property
    def entry(self) -> Entry | None:
        """The entry under the cursor; None where there are none."""
        return self.entries[self._on] if self._on < len(self.entries) else None

    def move(self, rows: int) -> None:
        """Move the cursor."""
        self._on = max(0, min(self._on + rows, len(self.entries) - 1))
        self._down = 0
        self._write()

    def page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.move(pages * max(1, self.list.size.height - 2))

    def scroll_pane(self, pages: int) -> None:
        """Scroll the figures."""
        self._down = max(0, self._down + pages * max(1, self.figures.content_size.height - 1))
        self._write()

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        entry = self.entry
        return ("no task or text", False) if entry is None else (printable(entry.name), True)

    # --- drawing ------------------------------------------------------------------------------

    def _write(self) -> None:
        width = self.app.size.width - 2
        now, entry = self._now(width), self.entry
        tables = entry is not None and entry.kind == "KLD"
        self.message.explain(STANDARD_ERRORS.format(g=self.glyphs) if tables else INTERVALS)
        if entry is None:
            self.list.set_lines([*self._nothing(width), *now])
            self.figures.set_lines([])
            return
        room = max(1, self.list.size.height - 1 - len(now))
        self._top = max(min(self._top, self._on), self._on - room + 1)
        body = [
            line_of(each, width, self.glyphs, here=at == self._on)
            for at, each in enumerate(self.entries[self._top : self._top + room], self._top)
        ]
        body += [[]] * (room - len(body))
        self.list.set_lines([heading(width, self.glyphs), *body, *now])
        lines = details(entry, width, self.glyphs)
        height = max(1, self.figures.content_size.height)
        self._down, shown = visible(lines, self._down, height, self.key("tasks.pane_down"))
        self.figures.set_lines(shown)

    def _now(self, width: int) -> list[Words]:
        """What a run is doing."""
        return doing(
            self.session, ASKED, width, self.glyphs,
            lambda job: (printable(job.title), phase_words(job) or about(job)),
        )  # fmt: skip

    def _nothing(self, width: int) -> list[Words]:
        said = [
            "What the recipe changes in answers, and on other texts:",
            "accuracy and flips of tasks, perplexity by text and position, KL quantiles.",
        ]
        keys = (
            f"{self.key('tasks.answer')} names tasks, {self.key('tasks.texts')} texts, "
            f"{self.key('tasks.table')} compares every position of the session's text"
        )
        if not self.session.changed:
            keys = UNCHANGED
        lines: list[Words] = [[(fit(line, width, self.glyphs), "")] for line in said]
        return [*lines, [], [(fit(keys, width, self.glyphs), "$dim")]]

    # --- asking -------------------------------------------------------------------------------

    def ask_tasks(self, asked: Callable[[p.AnyCommand], None]) -> None:
        """Ask for files of tasks, or names of lm-eval's."""

        def reads(value: str) -> p.AnyCommand:
            names = [part.strip() for part in value.split(",") if part.strip()]
            if not names:
                raise EngineError("a .jsonl file, or names of lm-eval's tasks")
            return p.FindSymptoms(tasks=tuple(map(_located, names)))

        self._ask(Prompt("tasks", complete_path, judge=_judged(reads), slow=True, kind="tasks",
                         glyphs=self.glyphs), asked, reads)  # fmt: skip

    def ask_texts(self, asked: Callable[[p.AnyCommand], None]) -> None:
        """Ask for evaluation texts."""
        self._ask(Prompt("score on", complete_texts, judge=_judged(parse_texts), kind="texts",
                         glyphs=self.glyphs), asked, parse_texts)  # fmt: skip

    def _ask(
        self,
        prompt: Prompt,
        asked: Callable[[p.AnyCommand], None],
        reads: Callable[[str], p.AnyCommand],
    ) -> None:
        self._asked, self._reads = asked, reads
        open_prompt(self, prompt)

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """Tasks or texts were named."""
        self._asked(self._reads(event.value))

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Say why a run was refused or failed."""
        if isinstance(event, p.Refused) and event.command in ("FindSymptoms", "MeasureTexts"):
            self.say("warning", event.message)
        elif isinstance(event, p.JobEnded) and event.kind in KINDS:
            self.ended(event)
        return True


def _judged(reads: Callable[[str], p.AnyCommand]) -> Callable[[str], Verdict]:
    """Whether a line can be read."""

    def judge(value: str) -> Verdict:
        try:
            reads(value)
        except EngineError as error:
            return Verdict(False, str(error))
        return Verdict(True)

    return judge


def _located(name: str) -> str:
    """A file by its absolute path; a name as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
