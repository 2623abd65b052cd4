"""The one table from commands to jobs: the only room that knows them all.

`Engine` takes commands from any thread and answers with events. It owns the session's journal,
the workspace and three threads: one that computes, one that opens, one for small errands.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

from engine import protocol as p
from engine import recipes
from engine.checkpoint import DiskLayer
from engine.errors import EngineError, UsageError
from engine.gauges import read_gauges
from engine.jobs import Job, Outcome, Scheduler, Steps
from engine.journal import SNAPSHOT_EVERY, FactStore, Journal, StoreError
from engine.opening import describe, open_job, versions
from engine.quant import parse_format
from engine.session import Session, apply, encode_session, recipe_hash
from engine.workspace import Workspace

log = logging.getLogger(__name__)

Announce = Callable[[int, p.AnyEvent], None]
Need = Literal["checkpoint", "model"]

URGENCY: dict[p.JobKind, int] = {"evaluate": 0, "triage": 1, "sweep": 2, "open": 0}
"""What a person waits for comes first."""

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
        self._journal, self._facts, self._announce = journal, facts, announce
        self._lock = threading.RLock()
        self.session: Session = journal.fold()
        # Jobs of the engine before are over, however it ended.
        self.session.jobs, self.session.stage = {}, None
        self._workspace = Workspace(facts, self.session.settings)
        self._waiting: list[tuple[Need, Job]] = []
        self._have: set[Need] = set()
        self._later: list[p.Evaluate] = []
        self._opening: str | None = None
        self._take_up = False
        self._numbers = itertools.count(1)
        self._recipe_job: str | None = None
        self._asked: dict[str, p.AskHistogram | p.AskExperts] = {}
        self._compute = Scheduler("compute", self._deliver, self._ended, self._at_rest)
        self._opener = Scheduler("open", self._deliver, self._ended)
        self._errands = Scheduler("errands", self._deliver, self._ended)
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
        elif isinstance(command, p.AskHistogram | p.AskExperts):
            layers = (command.layer,)
        ask = command.ask if isinstance(command, p.Triage | p.Sweep | p.Evaluate) else ""
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
            case p.SetFormat(layers=layers, format=format):
                self._record_change(recipes.change(self.session, layers, format))
            case p.Undo():
                self._record_change(recipes.undo(self.session))
            case p.Redo():
                self._record_change(recipes.redo(self.session))
            case p.Cancel(job=job):
                self._cancel(job)
            case p.AskHistogram():
                self._histogram(command)
            case p.AskExperts():
                self._experts(command)
            case p.Stop():
                raise UsageError("an engine in this process is stopped by closing it")

    def _open(self, command: p.Open) -> None:
        if self._opening is not None and self._open_failed() is None:
            if command.source == self.session.source:
                # Another client of the same session: it is open, or opening.
                self._tell_apart(command.settings)
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

    def _tell_apart(self, wanted: p.Settings) -> None:
        """Say that a session keeps the settings it was opened with, where others were asked for."""
        known = self.session.settings
        differing = [
            field
            for field in p.Settings.__struct_fields__
            if field != "fresh" and getattr(wanted, field) != getattr(known, field)
        ]
        if differing or wanted.fresh:
            what = ", ".join(differing) or "--fresh"
            self._tell(
                p.Notice(
                    "warning",
                    f"this session runs already, with profile {known.profile}: what was asked for "
                    f"now ({what}) is not used; quit it everywhere to open it anew",
                )
            )

    def _triage(self, command: p.Triage) -> None:
        def steps(job: str) -> Steps:
            from engine.measure.triage import triage

            return (yield from triage(self._workspace, chosen, job))

        chosen = recipes.canonical(command.formats or self._workspace.settings.formats)
        self._start("triage", "checkpoint", steps, chosen, ask=command.ask)

    def _sweep(self, command: p.Sweep) -> None:
        def steps(job: str) -> Steps:
            from engine.measure.sensitivity import sweep

            return (yield from sweep(self._workspace, chosen, command.direction, job))

        chosen = recipes.canonical(command.formats or self._workspace.settings.sweep_formats)
        running = [j for j in self.session.jobs.values() if j.kind == "sweep"]
        if any(j.status == "running" and j.title == _title("sweep", chosen) for j in running):
            raise UsageError("that sweep is running already")
        self._start("sweep", "model", steps, chosen, ask=command.ask)

    def _evaluate(self, command: p.Evaluate) -> None:
        recipes.canonical([f for f in (command.format, *command.layers.values()) if f != "kept"])
        if "model" not in self._have:
            # The model has the last word on the names of layers.
            if (why := self._why_not("model")) is not None:
                self._refuse(command, *why)
            else:
                self._later.append(command)
            return
        recipe, fallbacks = recipes.resolve(self.session, command.format, command.layers)
        for fallback in fallbacks:
            self._tell(fallback)
        self._measure(recipe, command.ask)

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
            from engine.measure.evaluation import evaluate

            return (yield from evaluate(self._workspace, recipe, job))

        return self._start("evaluate", "model", steps, recipe=recipe, ask=ask)

    def _cancel(self, job: str, *, missing_ok: bool = False) -> None:
        for need, waiting in self._waiting:
            if waiting.id == job:
                self._waiting.remove((need, waiting))
                self._ended(waiting, None, None)
                return
        for lane in (self._compute, self._opener):
            if lane.cancel(job):
                return
        if not missing_ok:
            raise UsageError(f"there is no job {job!r} running")

    def _histogram(self, command: p.AskHistogram) -> None:
        if command.bins < 1:
            raise UsageError(f"a histogram has at least one bin, not {command.bins}")
        row = self._disk_layer(command.layer)
        format = command.format
        if format not in ("", "kept"):
            format = str(parse_format(format))

        def steps() -> Steps:
            from engine.measure.drawn import draw_histogram

            return (yield from draw_histogram(self._workspace, row, command.bins, format))

        # Where the cursor came to last is drawn first.
        self._errand(command, steps(), -next(self._numbers))

    def _experts(self, command: p.AskExperts) -> None:
        row = self._disk_layer(command.layer)
        if row.role != "experts":
            raise UsageError(
                f"{row.name} holds no experts: it is one weight of shape {list(row.shape)}"
            )
        if command in self._asked.values():
            return  # its answer is on the way to every client

        def steps() -> Steps:
            from engine.measure.experts import survey_experts

            return (yield from survey_experts(self._workspace, row))

        self._errand(command, steps(), 1)

    def _disk_layer(self, layer: str) -> DiskLayer:
        row = self._workspace.rows.get(layer)
        if row is None:
            raise UsageError(f"the checkpoint has no layer {layer!r}")
        return row

    def _errand(self, command: p.AskHistogram | p.AskExperts, steps: Steps, urgency: int) -> None:
        job = self._job("errand", steps, urgency)
        self._asked[job.id] = command
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
    ) -> str:
        """Queue a job, or keep it until what it needs is there; returns its id."""
        number = f"{kind}-{next(self._numbers)}"
        job = Job(number, kind, URGENCY[kind], make(number))
        self._tell(
            p.JobStarted(
                job=job.id,
                kind=kind,
                title=_title(kind, formats),
                formats=formats,
                recipe="" if recipe is None else recipe_hash(recipe),
                ask=ask,
            )
        )
        if need in self._have:
            self._compute.submit(job)
        elif (why := self._why_not(need)) is not None:
            self._end(job, "failed", *why)
        else:
            self._waiting.append((need, job))
        return job.id

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
            self._compute.submit(job)

    def _deliver(self, job: Job, event: p.AnyEvent) -> None:
        with self._lock:
            self._tell(event)
            if isinstance(event, p.LayersListed):
                self._release("checkpoint")
                if self._recipe_job is not None:
                    self._measure_recipe()  # its layers may have other names now
            elif isinstance(event, p.ModelReady):
                network, _ = self._workspace.need_network()
                network.should_stop = self._compute.should_stop
                self._release("model")
                later, self._later = self._later, []
                for command in later:
                    self.handle(command)
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
        for command in later:
            self._refuse(command, *(self._why_not("model") or ("the model was not loaded", 1)))
        for need, job in waiting:
            if (why := self._why_not(need)) is None:
                self._waiting.append((need, job))
            else:
                job.steps.close()
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
        if self._workspace.network is not None:
            self._workspace.network.assert_at_rest()

    # -- events --------------------------------------------------------------------------------

    def _tell(self, event: p.AnyEvent) -> None:
        """Keep what is to be kept, fold it, announce it: in this order.

        Raises:
            StoreError: it could not be kept. The end of a job is announced all the same: whoever
                waits for it must not wait for ever.
        """
        with self._lock:
            try:
                seq = self._keep(event)
            except StoreError:
                if not isinstance(event, p.JobEnded):
                    raise
                log.exception("the end of job %s could not be kept", event.job)
                seq = 0
            apply(self.session, event, seq)
            self._announce(seq, event)
            if seq and seq % SNAPSHOT_EVERY == 0:
                try:
                    self._journal.snapshot(self.session)
                except StoreError:  # only a short cut for the next start
                    log.exception("a snapshot of the session could not be kept")

    def _keep(self, event: p.AnyEvent) -> int:
        if isinstance(event, p.Learned) and event.fresh:
            replace = self._workspace.settings.fresh
            self._facts.put(event.keys, event.facts, replace=replace)
        return 0 if isinstance(event, p.Transient) else self._journal.append(event)

    def _watch(self) -> None:
        while not self._closing.wait(GAUGE_SECONDS):
            if self.busy():
                try:
                    self._tell(read_gauges())
                except Exception:
                    log.exception("the gauges cannot be read")
                    return

    def snapshot(self) -> tuple[int, bytes]:
        """Number of the last journalled event, and the encoded session as it stood after it."""
        with self._lock:
            return self.session.seq, encode_session(self.session)

    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        return bool(self._waiting) or self._compute.busy or self._opener.busy

    def close(self) -> None:
        """End every job; what was measured is kept."""
        self._closing.set()
        for lane in (self._compute, self._errands):
            lane.close()
        self._opener.close(timeout=2.0)  # a load cannot be broken off everywhere; it is a daemon
        self._journal.close()
        self._facts.close()


def _title(kind: p.JobKind, formats: tuple[str, ...]) -> str:
    return " ".join([kind, *formats])
