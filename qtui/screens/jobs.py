"""The jobs of the engine, running and waiting, in the order in which they run; under a job the
processes that take part in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from engine.protocol import WorkerState
from engine.session import Job, running
from qtui.views.progress import about, phase_words, time_left
from qtui.views.text import fit, printable
from qtui.views.workers import worker_words
from qtui.widgets.choices import Choices
from qtui.widgets.line import Lines, Words, cells, spread

if TYPE_CHECKING:
    from qtui.screens.session_screen import SessionScreen

EVERY = 1.0
"""Seconds between two looks at the jobs."""


class Jobs(ModalScreen[None]):
    """A list of jobs, the running one first; each can be cancelled, or run before the others."""

    DEFAULT_CSS = """
    Jobs { align: center top; background: $background; }
    Jobs > #box {
        width: 100; max-width: 100%; height: auto; max-height: 90%; margin-top: 1;
        border: round $primary; background: $surface; padding: 0 1;
    }
    Jobs.-ascii > #box { border: ascii $primary; }
    Jobs Choices { background: $surface; }
    Jobs #foot { height: 1; background: $surface; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,J", "dismiss", "Close", id="jobs.close"),
        Binding("x,delete", "end", "Cancel the job", id="jobs.cancel"),
        Binding("enter,f", "first", "Run it before the others", id="jobs.first"),
        Binding("k", "move(-1)", "Up", id="jobs.up"),
        Binding("j", "move(1)", "Down", id="jobs.down"),
    ]

    def __init__(
        self, about: SessionScreen, end: Callable[[Job], None], first: Callable[[Job], None]
    ) -> None:
        """
        Args:
            about: whose session has the jobs.
            end: cancels a job.
            first: runs a waiting job before the others of its urgency.
        """
        super().__init__(classes="-ascii" if about.glyphs.ascii else None)
        self.about, self.end, self.first = about, end, first
        self.glyphs = about.glyphs
        self.rows: list[tuple[Job, WorkerState | None]] = []
        """Jobs, and under each its processes."""
        self.choices = Choices(self._draw, self.glyphs)
        self.choices.empty = [("nothing is running", "$dim")]
        self._drawn: list[str] = []

    def compose(self) -> ComposeResult:
        """The jobs, and the keys."""
        with Vertical(id="box"):
            yield self.choices
            foot = Lines(id="foot")
            foot.set_lines(
                [
                    [
                        ("x", "bold $primary"),
                        (" cancels   ", "$dim"),
                        ("f", "bold $primary"),
                        (" runs it before the others   ", "$dim"),
                        ("escape", "bold $primary"),
                        (" closes", "$dim"),
                    ]
                ]
            )
            yield foot

    def on_mount(self) -> None:
        """Show the jobs, and follow them."""
        self._look()
        self.set_interval(EVERY, self._look)

    @property
    def current(self) -> Job | None:
        """The job under the cursor."""
        return self.rows[self.choices.cursor][0] if self.rows else None

    @property
    def jobs(self) -> list[Job]:
        """All jobs that are shown."""
        return [job for job, worker in self.rows if worker is None]

    def _look(self) -> None:
        at = self.rows[self.choices.cursor] if self.rows else None
        self.rows = [
            (job, worker) for job in running(self.about.session) for worker in (None, *job.workers)
        ]
        drawn = [
            f"{job.id} {self._state(job)} {self._figures(job)}"
            if worker is None
            else worker_words(worker)
            for job, worker in self.rows
        ]
        if drawn != self._drawn:
            self._drawn = drawn
            self.choices.styles.height = max(1, min(len(self.rows), self.app.size.height - 8))
            self.choices.show(len(self.rows), None if at is None else self._row_of(*at))

    def _row_of(self, job: Job, worker: WorkerState | None) -> int | None:
        """Where a job or a process is now; None if it is gone."""
        named = [(each.id, other and other.name) for each, other in self.rows]
        here = job.id, worker and worker.name
        return named.index(here) if here in named else None

    def _state(self, job: Job) -> str:
        return "runs" if job is self.jobs[0] else "waits"

    def _figures(self, job: Job) -> str:
        """What a job is doing, how far it is, and the time left."""
        stage = self.about.session.stage
        if job.kind == "open" and stage is not None:
            far = f"{stage.done / stage.total:.0%}" if stage.total > 1 else ""
            return "  ".join(printable(word) for word in (stage.name, far) if word)
        count = f"{job.done:.0f}/{job.total}" if job.total > 1 and not job.in_bytes else ""
        words = (phase_words(job) or about(job), count, time_left(job))
        return "  ".join(printable(word) for word in words if word)

    def _draw(self, row: int, width: int) -> Words:
        job, worker = self.rows[row]
        if worker is not None:
            lost = worker.status == "lost"
            said = fit(printable(worker_words(worker)), max(0, width - 9), self.glyphs)
            return [(" " * 9, ""), (said, "$warning" if lost else "$dim")]
        state = f"{self._state(job):<7}"
        figures = self._figures(job)
        room = max(20, width - len(state) - len(figures) - 2)
        title = fit(printable(job.title), min(len(job.title), room), self.glyphs)
        words: Words = [(state, "bold $accent" if job is self.jobs[0] else "$dim"), (title, "")]
        return spread(words, [(figures, "$dim")], max(width, cells(words)))

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.choices.action_move(rows)

    def action_end(self) -> None:
        """Cancel the job under the cursor."""
        if self.current is not None:
            self.end(self.current)
            if len(self.jobs) == 1:
                self.dismiss()

    def action_first(self) -> None:
        """Run the job under the cursor before the others."""
        if self.current is not None and self.current is not self.jobs[0]:
            self.first(self.current)
