"""The prompts: a list, and below it both texts of the one under the cursor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual import events
from textual.app import ComposeResult

from engine import protocol as p
from engine.session import Dirty, Session
from qtui.screens.session_screen import UNCHANGED, SessionScreen
from qtui.views.doing import doing
from qtui.views.sources import complete_path
from qtui.views.symptoms import (
    Prompts,
    Row,
    cause_lines,
    contrast_lines,
    difference,
    findings,
    heading,
    line_of,
    summary,
    texts,
)
from qtui.views.text import UNICODE, Glyphs, Words, fit, printable
from qtui.widgets.line import Lines
from qtui.widgets.prompt.prompt import Prompt, open_prompt
from qtui.widgets.prompt.verdict import Verdict

SHOWN: frozenset[Dirty] = frozenset({"layers", "model", "checkpoint", "symptoms", "jobs", "holds"})
LIST = 0.4
"""Share of the height that the list has at most."""


class Symptoms(SessionScreen):
    """Prompts with what the recipe does to them."""

    CSS = """
    #prompts { height: 1fr; padding: 0 1; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        super().__init__(glyphs)
        self.list = Lines(id="prompts")
        self.prompts = Prompts()
        self._on = 0
        self._top = 0
        self._named: Callable[[str], None] = lambda text: None
        self._reopen: Callable[[str], Prompt] = lambda text: Prompt("prompt", value=text)
        self._typed = ""
        """What was submitted, and may be refused."""
        self._drafts: dict[str, str] = {}
        """What was typed and left, by the kind of line."""
        self.message.legend = (
            f"{glyphs.finding} a symptom of the recipe alone; in a text, where both first differ",
        )

    def compose(self) -> ComposeResult:
        """The list with the texts, the foot."""
        yield self.list
        yield from self.foot()

    def on_resize(self, event: events.Resize) -> None:
        """Lay the lines out for the new size."""
        self.call_after_refresh(self._write)

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if whole or dirty & SHOWN:
            before = self.row
            self.prompts.take(session)
            ids = [row.id for row in self.prompts.rows]
            if before is not None and before.id in ids:
                self._on = ids.index(before.id)
            self._on = max(0, min(self._on, len(ids) - 1))
            self._write()

    @property
    def row(self) -> Row | None:
        """The prompt under the cursor; None where there are none."""
        rows = self.prompts.rows
        return rows[self._on] if self._on < len(rows) else None

    def move(self, rows: int) -> None:
        """Move the cursor."""
        self._on = max(0, min(self._on + rows, len(self.prompts.rows) - 1))
        self._write()

    def page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.move(pages * max(1, self._list_height() - 1))

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        row = self.row
        return ("no prompt", False) if row is None else (printable(row.id), True)

    # --- drawing ------------------------------------------------------------------------------

    def _list_height(self) -> int:
        height = max(2, self.list.size.height)
        return max(1, min(len(self.prompts.rows), int(LIST * height)))

    def _write(self) -> None:
        width, height = self.app.size.width - 2, max(2, self.list.size.height)
        rows = self.prompts.rows
        now = self._now(width)
        if not rows:
            self.list.set_lines([*self._nothing(width), *now])
            return
        room = self._list_height()
        self._top = max(0, min(self._top, self._on, len(rows) - room))
        self._top = max(self._top, self._on - room + 1)
        lines = [*summary(self.prompts, width, self.glyphs), heading(width, self.glyphs)]
        for at in range(self._top, min(self._top + room, len(rows))):
            lines.append(line_of(rows[at], width, self.glyphs, here=at == self._on))
        lines.append([(self.glyphs.rule * width, "$dim")])
        row = rows[self._on]
        below = [
            *findings(row, width, self.glyphs),
            *difference(row, width, self.glyphs),
            *cause_lines(self.prompts.causes(self.session), width, self.glyphs),
            *contrast_lines(self.prompts, width, self.glyphs),
            *now,
        ]
        left = height - len(lines)
        below = below[: max(0, left - 4)]
        both = texts(row, width, max(2, left - len(below)), self.glyphs)
        self.list.set_lines([*lines, *both, *below])

    def _now(self, width: int) -> list[Words]:
        """What a run is doing."""
        return doing(self.session, (p.FindSymptoms,), width, self.glyphs)

    def _nothing(self, width: int) -> list[Words]:
        if not self.session.layers.names:
            return [[("no layers yet", "$dim")]]
        said = [
            "Prompts, continued by the reference and by the recipe:",
            "what differs, what is wrong, which layers cure it.",
        ]
        keys = f"{self.key('symptoms.type')} types one, {self.key('symptoms.file')} names a file"
        if not self.session.changed:
            keys = UNCHANGED
        return [*([(line, "")] for line in said), [], [(fit(keys, width, self.glyphs), "$dim")]]

    # --- naming prompts -----------------------------------------------------------------------

    def ask_text(self, named: Callable[[str], None]) -> None:
        """Ask for a prompt."""
        self._ask("prompt", named, "what to continue", path=False)

    def ask_file(self, named: Callable[[str], None]) -> None:
        """Ask for a file of prompts."""
        self._ask("prompts in", named, "a file: one a line, or .jsonl", path=True)

    def _ask(
        self, label: str, named: Callable[[str], None], what: str, *, path: bool, value: str = ""
    ) -> Prompt:
        self._named = named

        def judge(value: str) -> Verdict:
            there = bool(value.strip()) and (not path or Path(value.strip()).expanduser().is_file())
            return Verdict(there, "" if there else what)

        def again(value: str) -> Prompt:
            return self._ask(label, named, what, path=path, value=value)

        self._reopen = again
        value = value or self._drafts.pop(label, "")
        prompt = (
            Prompt(
                label, complete_path, judge=judge, slow=True, kind="prompts", value=value,
                glyphs=self.glyphs,
            )
            if path
            else Prompt(label, judge=judge, kind="prompt", value=value, glyphs=self.glyphs)
        )  # fmt: skip
        open_prompt(self, prompt)
        return prompt

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """A prompt or a file was named."""
        self._typed = event.value
        self._named(event.value)

    def on_prompt_cancelled(self, event: Prompt.Cancelled) -> None:
        """Keep what was typed: the next line of its kind begins with it."""
        if event.prompt.value.strip():
            self._drafts[event.prompt.label] = event.prompt.value

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Say why a run was refused or failed, and give back what was typed."""
        if isinstance(event, p.Refused) and event.command == "FindSymptoms":
            self.say("warning", event.message)
            typed, self._typed = self._typed, ""
            if typed and self.is_current and not self.query(Prompt):
                prompt = self._reopen(typed)
                prompt.call_after_refresh(prompt.say, Verdict(False, event.message), loud=True)
        elif isinstance(event, p.JobStarted) and event.kind == "symptoms":
            self._typed = ""
        elif isinstance(event, p.JobEnded) and event.kind == "symptoms":
            self.ended(event)
        return True
