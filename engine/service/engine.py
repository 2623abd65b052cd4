"""The one table from commands to jobs: the only room that knows them all.

`Engine` takes commands from any thread and answers with events. It owns the session's journal,
the workspace and four threads: one that computes, one that opens, one for small questions, one
that exports.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from engine import protocol as p
from engine.errors import EngineError, UsageError
from engine.measure.sweep.exactness import parse_exactness
from engine.opening.stages import describe, differing, open_job, versions
from engine.recipes import changes as recipes
from engine.recipes.mixes import recipe_named
from engine.service.errands import Question, answering, calibrates, calibrating, exporting
from engine.service.gauges import read_gauges
from engine.service.scheduler import Job, Outcome, Scheduler, Steps
from engine.session import Session, recipe_hash
from engine.store.journal import FactStore, Journal
from engine.store.recorder import Announce, Record
from engine.workspace import Loaded, Opened, Workspace

log = logging.getLogger(__name__)

Need = Literal["checkpoint", "model"]

URGENCY: dict[p.JobKind, int] = {"evaluate": 0, "triage": 1, "sweep": 2, "open": 0, "export": 1}
"""What a person waits for comes first; of an export this is the solving."""

GAUGE_SECONDS = 1.0


class Engine:
    """One checkpoint's engine."""

    def __init__(self, journal: Journal, facts: FactStore, announce: Announce) -> None:
        """
        Args:
            journal: of the session; what it tells is taken up again.
            facts: the store of measurements.
            announce: takes every event with its number (0 for transient ones), in order, on
                whichever thread it came about; must not block.
        """
        self._journal, self._facts = journal, facts
        self._lock = threading.RLock()
        self._record = Record(journal, facts, announce, self._lock)
        self._tell, self.snapshot = self._record.tell, self._record.snapshot
        self.session: Session = self._record.session
        self._workspace = Workspace(facts, self.session.settings)
        self._waiting: list[tuple[Need, Job]] = []
        self._have: set[Need] = set()
        self._later: list[tuple[Need, p.Evaluate | p.Export]] = []
        self._opening: str | None = None
        self._take_up = False
        self._numbers = itertools.count(1)
        self._recipe_job: str | None = None
        self._asked: dict[str, Question] = {}
        self._then_written: dict[str, Callable[[Outcome], Steps]] = {}
        """Of exports that are being calibrated for: what comes then, on the export thread."""
        self._compute = Scheduler("compute", self._deliver, self._ended, self._at_rest)
        self._opener = Scheduler("open", self._deliver, self._ended)
        self._errands = Scheduler("errands", self._deliver, self._ended)
        self._exporter = Scheduler("export", self._deliver, self._ended)
        self._workspace.should_stop = self._compute.should_stop
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="gauges", daemon=True).start()

    # -- commands ------------------------------------------------------------------------------

    def handle(self, command: p.AnyCommand) -> None:
        """Carry a command out, or announce `Refused`; returns before any computing is done."""
        try:
            with self._lock:
                self._handle(command)
        except EngineError as error:
            self._refuse(command, str(error), error.exit_code)
        except Exception as error:
            log.exception("command %s", command)
            sentence, code = describe(error)
            self._refuse(command, sentence, code)

    def _refuse(self, command: p.AnyCommand, sentence: str, exit_code: int) -> None:
        layers: tuple[str, ...] = ()
        if isinstance(command, p.SetFormat):
            layers = command.layers
        elif isinstance(command, Question):
            layers = (command.layer,)
        ask = ""
        if isinstance(command, p.Triage | p.Sweep | p.Evaluate | p.Export):
            ask = command.ask
        self._tell(p.Refused(type(command).__name__, sentence, exit_code, layers, ask))

    def _handle(self, command: p.AnyCommand) -> None:
        if self._opening is None and not isinstance(command, p.Open | p.Stop):
            raise UsageError("no checkpoint is open: open one first")
        match command:
            case p.Open():
                self._open(command)
            case p.Triage():
                self._triage(command)
            case p.Sweep():
                self._sweep(command)
            case p.Evaluate():
                self._evaluate(command)
            case p.Export():
                self._export(command)
            case p.SetFormat(layers=layers, format=format):
                self._record_change(recipes.change(self.session, layers, format))
            case p.Undo():
                self._record_change(recipes.undo(self.session))
            case p.Redo():
                self._record_change(recipes.redo(self.session))
            case p.Cancel(job=job):
                self._cancel(job)
            case p.AskHistogram() | p.AskExperts():
                self._question(command)
            case p.Stop():
                raise UsageError("an engine in this process is stopped by closing it")

    def _open(self, command: p.Open) -> None:
        if self._opening is not None and self._open_failed() is None:
            if command.source == self.session.source:
                # Another client of the same session: it is open, or opening.
                if (notice := differing(self.session.settings, command.settings)) is not None:
                    self._tell(notice)
                return
            raise UsageError(f"this engine has {self.session.source} open: start another one")
        if command.settings.fresh:
            self._journal.clear()
        self._workspace = Workspace(self._facts, command.settings)
        self._workspace.should_stop = self._compute.should_stop
        self._have, self._recipe_job = set(), None
        self._tell(p.Opened(command.source, command.settings, versions()))
        steps = open_job(self._workspace, command.source, model=command.model)
        job = self._job("open", steps)
        self._opening, self._take_up = job.id, command.take_up
        self._tell(p.JobStarted(job=job.id, kind="open", title=f"open {command.source}"))
        self._opener.submit(job)

    # What a job needs is imported at its first step, on its own thread: a command never waits for
    # a library, nor does the lock.

    def _triage(self, command: p.Triage) -> None:
        def steps(job: str) -> Steps:
            from engine.measure.weights.triage import triage

            return (yield from triage(self._workspace.need(Opened), chosen, job))

        chosen = recipes.canonical(command.formats or self._workspace.settings.formats, alone=True)
        self._start("triage", "checkpoint", steps, chosen, ask=command.ask)

    def _sweep(self, command: p.Sweep) -> None:
        def steps(job: str) -> Steps:
            from engine.measure.sweep.sweep import sweep

            return (
                yield from sweep(
                    self._workspace.need(Loaded),
                    chosen,
                    command.direction,
                    job,
                    exact=command.exact,
                    by=command.by,
                )
            )

        chosen = recipes.canonical(command.formats or self._workspace.settings.sweep_formats)
        title = _title("sweep", chosen, *_unusual(command))
        running = [j for j in self.session.jobs.values() if j.kind == "sweep"]
        if any(j.status == "running" and j.title == title for j in running):
            raise UsageError("that sweep is running already")
        self._start("sweep", "model", steps, chosen, ask=command.ask, title=title)

    def _evaluate(self, command: p.Evaluate) -> None:
        # The model has the last word on the names of layers.
        if (recipe := self._resolved(command, "model")) is not None:
            self._measure(recipe, command.ask)

    def _export(self, command: p.Export) -> None:
        out = Path(command.out)
        if not out.is_absolute():
            raise UsageError(f"{command.out!r} is no absolute path: an export needs one")
        solves = calibrates([command.format, *command.layers.values()])
        need: Need = "model" if solves else "checkpoint"
        if (recipe := self._resolved(command, need)) is None:
            return
        replace = command.overwrite
        codes: dict[str, Any] = {}

        def steps(job: str) -> Steps:
            def write(before: Outcome | None) -> Steps:
                return exporting(
                    self._workspace.need(Opened),
                    recipe,
                    out,
                    job,
                    overwrite=replace,
                    should_stop=self._exporter.should_stop,
                    codes=codes,
                    before=before,
                )

            if not solves:
                return write(None)
            self._then_written[job] = write
            loaded = self._workspace.need(Loaded)
            return calibrating(loaded, recipe, out, codes, overwrite=replace)

        self._start("export", need, steps, recipe=recipe, ask=command.ask)

    def _resolved(self, command: p.Evaluate | p.Export, need: Need) -> dict[str, str] | None:
        """The recipe that a command gives; None where it is carried out later, or refused."""
        recipes.canonical([f for f in (command.format, *command.layers.values()) if f != "kept"])
        if command.recipe:
            recipe_named(command.recipe)
        if need not in self._have:
            if (why := self._why_not(need)) is not None:
                self._refuse(command, *why)
            else:
                self._later.append((need, command))
            return None
        recipe, fallbacks = recipes.resolve(
            self.session,
            command.format,
            command.layers,
            command.recipe,
            tied=self._workspace.need(Opened).tied,
        )
        for fallback in fallbacks:
            self._tell(fallback)
        return recipe

    def _record_change(self, changed: p.RecipeChanged | None) -> None:
        if changed is not None:
            self._tell(changed)
            self._measure_recipe()

    def _measure_recipe(self) -> None:
        """Measure the recipe as it stands, instead of the one being measured."""
        if self._recipe_job is not None:
            self._cancel(self._recipe_job, missing_ok=True)
        self._recipe_job = self._measure(self.session.recipe())

    def _measure(self, recipe: dict[str, str], ask: str = "") -> str:
        def steps(job: str) -> Steps:
            from engine.measure.evaluation.evaluate import evaluate

            return (yield from evaluate(self._workspace.need(Loaded), recipe, job))

        return self._start("evaluate", "model", steps, recipe=recipe, ask=ask)

    def _cancel(self, job: str, *, missing_ok: bool = False) -> None:
        for need, waiting in self._waiting:
            if waiting.id == job:
                self._waiting.remove((need, waiting))
                self._ended(waiting, None, None)
                return
        for lane in (self._compute, self._opener, self._exporter):
            if lane.cancel(job):
                return
        if not missing_ok:
            raise UsageError(f"there is no job {job!r} running")

    def _question(self, question: Question) -> None:
        steps = answering(self._workspace.need(Opened), question)
        if isinstance(question, p.AskExperts) and question in self._asked.values():
            return  # its answer is on the way to every client
        # Where the cursor came to last is drawn first.
        urgency = -next(self._numbers) if isinstance(question, p.AskHistogram) else 1
        job = self._job("errand", steps, urgency)
        self._asked[job.id] = question
        self._errands.submit(job)

    # -- jobs ----------------------------------------------------------------------------------

    def _job(self, kind: Any, steps: Steps, urgency: int = 0) -> Job:
        return Job(f"{kind}-{next(self._numbers)}", kind, urgency, steps)

    def _start(
        self,
        kind: p.JobKind,
        need: Need,
        make: Callable[[str], Steps],
        formats: tuple[str, ...] = (),
        recipe: dict[str, str] | None = None,
        ask: str = "",
        title: str = "",
    ) -> str:
        """Queue a job, or keep it until what it needs is there; returns its id."""
        number = f"{kind}-{next(self._numbers)}"
        job = Job(number, kind, URGENCY[kind], make(number))
        self._tell(
            p.JobStarted(
                job=job.id,
                kind=kind,
                title=title or _title(kind, formats),
                formats=formats,
                recipe="" if recipe is None else recipe_hash(recipe),
                ask=ask,
            )
        )
        if need in self._have:
            self._lane(job).submit(job)
        elif (why := self._why_not(need)) is not None:
            self._end(job, "failed", *why)
        else:
            self._waiting.append((need, job))
        return job.id

    def _lane(self, job: Job) -> Scheduler:
        writes = job.kind == "export" and job.id not in self._then_written
        return self._exporter if writes else self._compute

    def _open_failed(self) -> tuple[str, int] | None:
        """Why the checkpoint could not be opened, with an exit code; None if it is, or may be."""
        job = self.session.jobs.get(self._opening or "")
        if job is None or job.status in ("running", "done"):
            return None
        return job.message or "opening was cancelled", job.exit_code or 1

    def _why_not(self, need: Need) -> tuple[str, int] | None:
        """Why a job that needs this will never run; None while it may."""
        if (failed := self._open_failed()) is not None:
            return failed
        job = self.session.jobs.get(self._opening or "")
        if job is not None and job.status == "done" and need not in self._have:
            return "the checkpoint was opened without its model", UsageError.exit_code
        return None

    def _release(self, need: Need) -> None:
        self._have.add(need)
        ready = [job for wanted, job in self._waiting if wanted == need]
        self._waiting = [(wanted, job) for wanted, job in self._waiting if wanted != need]
        for job in ready:
            self._lane(job).submit(job)
        later = [command for wanted, command in self._later if wanted == need]
        self._later = [(wanted, command) for wanted, command in self._later if wanted != need]
        for command in later:
            self.handle(command)

    def _deliver(self, job: Job, event: p.AnyEvent) -> None:
        with self._lock:
            self._tell(event)
            if isinstance(event, p.LayersListed):
                self._release("checkpoint")
                if self._recipe_job is not None:
                    self._measure_recipe()  # its layers may have other names now
            elif isinstance(event, p.ModelReady):
                self._release("model")
                if self._take_up and self.session.changed and self._recipe_job is None:
                    self._measure_recipe()  # taken up from an earlier run of this session

    def _ended(self, job: Job, outcome: Outcome | None, error: BaseException | None) -> None:
        with self._lock:
            asked = self._asked.pop(job.id, None)
        if asked is not None:
            if error is not None:
                self._refuse(asked, *describe(error))
            return
        with self._lock:
            write = self._then_written.pop(job.id, None)
            if write is not None and outcome is not None:
                self._exporter.submit(Job(job.id, job.kind, job.urgency, write(outcome)))
                return
            if error is not None:
                if not isinstance(error, EngineError):
                    log.error("job %s failed", job.id, exc_info=error)
                self._end(job, "failed", *describe(error))
            elif outcome is None:
                self._end(job, "cancelled")
            else:
                self._end(job, "done", outcome=outcome)
            if job.id == self._recipe_job:
                self._recipe_job = None
            if job.kind == "open":
                self._fail_waiting()

    def _fail_waiting(self) -> None:
        """End the jobs that what was opened will never let run."""
        waiting, self._waiting = self._waiting, []
        later, self._later = self._later, []
        for need, command in later:
            self._refuse(command, *(self._why_not(need) or (f"the {need} was not loaded", 1)))
        for need, job in waiting:
            if (why := self._why_not(need)) is None:
                self._waiting.append((need, job))
            else:
                job.steps.close()
                self._then_written.pop(job.id, None)
                self._end(job, "failed", *why)

    def _end(
        self,
        job: Job,
        status: p.JobStatus,
        message: str = "",
        exit_code: int = 0,
        outcome: Outcome | None = None,
    ) -> None:
        outcome = outcome or Outcome()
        self._tell(
            p.JobEnded(
                job=job.id,
                kind=job.kind,
                status=status,
                message=message,
                exit_code=exit_code,
                resumed=outcome.resumed,
                measured=outcome.measured,
                timings=outcome.timings,
            )
        )

    def _at_rest(self) -> None:
        """Between two steps nothing is open: no grad mode, no patch, reference weights."""
        torch = sys.modules.get("torch")  # not imported before a job needs it
        if torch is not None and hasattr(torch, "is_inference_mode_enabled"):
            assert torch.is_grad_enabled(), "a job left gradients disabled across a yield"
            assert not torch.is_inference_mode_enabled(), "a job left inference mode on"
        for loaded in self._workspace.every(Loaded):
            loaded.network.assert_at_rest()

    def _watch(self) -> None:
        while not self._closing.wait(GAUGE_SECONDS):
            if self.busy():
                try:
                    self._tell(read_gauges())
                except Exception:
                    log.exception("the gauges cannot be read")
                    return

    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        lanes = (self._compute, self._opener, self._exporter)
        return bool(self._waiting) or any(lane.busy for lane in lanes)

    def close(self) -> None:
        """End every job; what was measured is kept."""
        self._closing.set()
        for lane in (self._compute, self._errands, self._exporter):
            lane.close()
        self._opener.close(timeout=2.0)  # a load cannot be broken off everywhere; it is a daemon
        self._journal.close()
        self._facts.close()


def _title(kind: p.JobKind, formats: tuple[str, ...], *more: str) -> str:
    return " ".join([kind, *formats, *more])


def _unusual(command: p.Sweep) -> list[str]:
    """What a sweep asks for that most do not, in words.

    Raises:
        UsageError: ``exact`` says nothing.
    """
    asked = (command.direction, f"by {command.by}", str(parse_exactness(command.exact)))
    return [word for word in asked if word not in ("degrade", "by layer", "all")]
