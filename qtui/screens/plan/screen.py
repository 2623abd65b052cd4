"""The plan: the frontier as a plot and a list, and what its recipe would change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult

from engine import protocol as p
from engine.errors import UsageError
from engine.session import Dirty, Session, last_job
from qtui.screens.session_screen import SessionScreen
from qtui.views.budgets import SYNTAX, parse_budget
from qtui.views.export_marks import ExportMarks
from qtui.views.plans import (
    KIND,
    Row,
    changes,
    finished_points,
    frontier_plot,
    heading,
    line_of,
    rows_of,
    summary,
)
from qtui.views.progress import phase_words, time_left
from qtui.views.text import UNICODE, Glyphs, printable
from qtui.widgets.line import Lines, Words
from qtui.widgets.prompt.prompt import Prompt, open_prompt
from qtui.widgets.prompt.verdict import Verdict

SHOWN: frozenset[Dirty] = frozenset({"layers", "holds", "recipe", "measured", "jobs", "model"})
USUAL = "4.5"
"""The budget that is offered first."""


class Plan(SessionScreen):
    """A recipe for a budget, and the frontier that it is on."""

    CSS = """
    #head { height: 2; padding: 0 1; }
    #plot { height: 2fr; padding: 0 1; }
    #points { height: 2fr; padding: 0 1; border-top: solid $panel; }
    #changes { height: 1fr; min-height: 7; padding: 0 1; border-top: solid $panel; }
    Plan.-ascii #points, Plan.-ascii #changes { border-top: ascii $panel; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, marks: ExportMarks | None = None) -> None:
        super().__init__(glyphs)
        self.marks = marks or ExportMarks()
        """With the export target that a plan is for."""
        self.head, self.plot = Lines(id="head"), Lines(id="plot")
        self.points, self.apart = Lines(id="points"), Lines(id="changes")
        self.planned: p.Planned | None = None
        """The newest plan."""
        self.rows: list[Row] = []
        self._at: int | None = None
        """Line of the cursor; None for that of the plan."""
        self._top = self._top_apart = 0
        self._number: str = ""
        """Job of the plan that is shown."""
        self.command: p.Plan | None = None
        """What asked for that plan."""
        self._asked: Callable[[p.Budget], None] = lambda budget: None
        self._take: tuple[p.Budget, Callable[[Mapping[str, str]], None]] | None = None
        self._prompted = False

    def compose(self) -> ComposeResult:
        """The plan in a line, the plot, the list, the changes, the foot."""
        yield self.head
        yield self.plot
        yield self.points
        yield self.apart
        yield from self.foot()

    def on_resize(self, event: events.Resize) -> None:
        """Lay everything out for the new size."""
        self.call_after_refresh(self._write)

    def on_screen_resume(self) -> None:
        """Ask for a budget at once where there is no plan yet."""
        self._prompted = self._prompted or self.expecting
        if self.planned is None and self.effects_known() and not self._prompted:
            self._prompted = True
            self.action_do("plan.budget")

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw what changed."""
        self.session = session
        if not whole and not dirty & SHOWN:
            return
        jobs = [job for job in session.jobs.values() if job.kind == "plan" and job.result]
        newest = jobs[-1].id if jobs else ""
        if newest != self._number or whole:
            self._number = newest
            self.planned = jobs[-1].read(p.Planned) if jobs else None
            command = jobs[-1].command if jobs else None
            self.command = command if isinstance(command, p.Plan) else None
            self.rows = rows_of(self.planned) if self.planned is not None else []
            self._at, self._top_apart = None, 0
            self._taken()
            self._write(whole=True)
            return
        job = last_job(session, KIND)
        if job is not None and job.status in ("failed", "cancelled"):
            self._take = None  # else a later plan for that budget would be taken unasked
        self._write()

    def _taken(self) -> None:
        """Take a plan that was asked for to be taken."""
        if self._take is not None and self.planned is not None:
            budget, take = self._take
            if self.planned.budget == budget:
                self._take = None
                take(self.planned.recipe)

    def effects_known(self) -> bool:
        """Whether there is anything to plan from."""
        return any(key.by == "layer" for key in self.session.effects.known("degrade"))

    # --- the cursor ---------------------------------------------------------------------------

    @property
    def at(self) -> int:
        """The line of the cursor."""
        if self._at is not None and self._at < len(self.rows):
            return self._at
        return next((at for at, row in enumerate(self.rows) if row.plan), 0)

    @property
    def row(self) -> Row | None:
        """What the cursor is on."""
        return self.rows[self.at] if self.rows else None

    @property
    def room(self) -> int:
        """Lines of the list that are visible."""
        return max(1, self.points.size.height - 2)

    def page(self, pages: int) -> None:
        """Move the cursor by a page."""
        self.move(pages * self.room)

    def move(self, rows: int) -> None:
        """Move the cursor."""
        self._at = max(0, min(self.at + rows, len(self.rows) - 1))
        self._write()

    def scroll_apart(self, pages: int) -> None:
        """Scroll the changes."""
        step = max(1, self.apart.size.height - 2)
        self._top_apart = max(0, self._top_apart + pages * step)
        self._write()

    def here(self) -> tuple[str, bool]:
        """What the keys act on now."""
        row = self.row
        return (row.name or "a size of the frontier") if row else "no plan yet", row is not None

    def budget_of(self, row: Row) -> p.Budget:
        """The budget that a point of the frontier, or a rule, is the answer to."""
        if self.planned is not None and self.planned.budget.bits is not None:
            return p.Budget(bits=row.point.bits_per_weight)
        # A little more, since a size in GiB is not written to the last byte.
        return p.Budget(gib=row.point.bytes * (1 + 1e-9) / 2**30)

    def take_when_planned(
        self, budget: p.Budget, take: Callable[[Mapping[str, str]], None]
    ) -> None:
        """Take the recipe for a budget once it is planned."""
        self._take = budget, take

    # --- drawing ------------------------------------------------------------------------------

    def _write(self, *, whole: bool = False) -> None:
        width, factor = self.app.size.width - 2, self.session.interval_factor
        self.head.set_lines([self._first(), self._second()])
        if self.planned is None:
            for lines in (self.plot, self.points, self.apart):
                lines.set_lines([])
            return
        self.plot.set_lines(
            frontier_plot(
                self.rows,
                self.row,
                width,
                self.plot.size.height,
                self.glyphs,
                finished_points(self.session),
                factor,
            )
        )
        at, room = self.at, self.room
        if not self._top <= at < self._top + room or whole:
            self._top = max(0, min(at - room // 2, len(self.rows) - room))
        shown = self.rows[self._top : self._top + room]
        self.points.set_lines(
            [
                heading(width, self.glyphs),
                *(line_of(row, width, self.glyphs, factor, here=row is self.row) for row in shown),
            ]
        )
        self.apart.set_lines(self._changes())

    def _first(self) -> Words:
        if self.planned is None:
            if not self.effects_known():
                return [("nothing to plan from yet: effects come with the sweep", "$dim")]
            return [(f"{self.key('plan.budget')} asks for a budget: {SYNTAX}", "$dim")]
        budget = f"plan for {self.planned.budget}  "
        room, factor = self.app.size.width - 2 - cell_len(budget), self.session.interval_factor
        return [(budget, "$held"), *summary(self.planned, room, self.glyphs, factor)]

    def _second(self) -> Words:
        job = last_job(self.session, KIND)
        if job is not None and job.status == "running":
            said = "  ".join(part for part in (phase_words(job), time_left(job)) if part)
            return [(f"{job.title}: {said or 'waiting'}", "$dim")]
        if job is not None and job.status == "failed":
            return [(printable(job.message), "$error")]
        if self.planned is not None and self.planned.point.score is None:
            keys = self.key("plan.measure"), self.key("plan.take")
            return [(f"{keys[0]} measures and improves it, {keys[1]} takes it as it is", "$dim")]
        return []

    def _changes(self) -> list[Words]:
        row, planned = self.row, self.planned
        if row is None or planned is None:
            return []
        if not row.plan:
            take, measure = self.key("plan.take"), self.key("plan.measure")
            said = f"{take} plans for this size and takes the recipe; {measure} measures it first"
            return [[(said, "$dim")]]
        lines = changes(self.session, planned.recipe, self.app.size.width - 2, self.glyphs)
        room = max(1, self.apart.size.height - 1)
        if len(lines) > room:
            room = max(1, room - 1)  # for how many more there are
        self._top_apart = max(0, min(self._top_apart, len(lines) - room))
        shown = lines[self._top_apart : self._top_apart + room]
        if (left := len(lines) - self._top_apart - len(shown)) > 0:
            keys = self.key("plan.down_apart")
            shown.append([(f"{self.glyphs.ellipsis} {left} more below, {keys}", "$dim")])
        return shown

    # --- the budget ---------------------------------------------------------------------------

    def ask_budget(self, asked: Callable[[p.Budget], None]) -> None:
        """Ask for a budget."""
        self._asked = asked

        def judge(value: str) -> Verdict:
            try:
                budget = parse_budget(value, self.session.cache)
            except UsageError as error:
                return Verdict(False, str(error))
            return Verdict(True, f"plan for {budget}")

        open_prompt(
            self,
            Prompt(
                "budget", judge=judge, value="" if self.planned else USUAL, kind="budget",
                placeholder=SYNTAX, glyphs=self.glyphs,
            ),
        )  # fmt: skip

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        """A budget was typed."""
        self._asked(parse_budget(event.value, self.session.cache))

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Say why a plan was refused."""
        if isinstance(event, p.Refused) and event.command in ("Plan", "SetRecipe"):
            self._take = None
            self.say("warning", event.message)
        return True
