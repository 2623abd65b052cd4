"""The engine: accepts commands from any thread, queues their jobs, answers with events.

It knows no job by name: the declarations in `engine.service.commands` say what a command needs,
where its job runs and how urgent it is. The engine owns the session's journal, the workspace and
the threads that run jobs.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from engine import protocol as p
from engine.errors import EngineError, OutOfMemoryError, UsageError
from engine.service.commands import load, spec_of
from engine.service.failures import describe, out_of_memory
from engine.service.gauges import read_gauges
from engine.service.jobs import (
    ChangeSpec,
    Context,
    JobSpec,
    Lane,
    Needs,
    OpenSpec,
    Outcome,
    Workspace,
)
from engine.service.retrying import Failure, Retried, with_need_said
from engine.service.scheduler import AnySteps, Job, Scheduler
from engine.session import Session, decode_session, encode_session, recipe_hash
from engine.store.facts import FactStore
from engine.store.journal import Journal
from engine.store.recorder import Announce, Recorder

log = logging.getLogger(__name__)

Reply: TypeAlias = Callable[[p.Refused | p.Notice], None]
"""Sends a refusal, or a warning, to the client that sent the command alone; must not block."""

GAUGE_SECONDS = 1.0


@dataclass(eq=False)
class _Task:
    """A command in progress: accepted, perhaps announced, perhaps running."""

    id: str
    spec: JobSpec[Any]
    command: p.Command
    needs: Needs
    replies: list[Reply]
    context: Context[Any]
    announced: bool = False
    job: Job | None = None
    """Set once it is queued on a lane."""
    lane: Lane | None = None
    steps: Retried | None = None
    """Its steps, unless it opens a checkpoint."""


def _nobody(answer: p.Refused | p.Notice) -> None:
    """The reply to a command that the engine sent to itself."""
    log.warning("%s", answer.message)


class Engine:
    """One checkpoint's engine."""

    def __init__(self, journal: Journal, facts: FactStore, announce: Announce) -> None:
        """
        Args:
            journal: of the session, which is resumed from it.
            facts: the store of measurements.
            announce: receives every event with its number (0 for transient ones), in order, on the
                thread that recorded it; must not block.
        """
        load()
        self._journal, self._facts = journal, facts
        self._lock = threading.RLock()
        self._recorder = Recorder(journal, facts, announce, self._lock)
        self._emit, self.snapshot = self._recorder.emit, self._recorder.snapshot
        facts.on_damage = self._say_damage
        if journal.recovered:
            self._emit(p.Notice("warning", journal.recovered))
        self._say_damage()
        self.session: Session = self._recorder.session
        self._workspace: Workspace | None = None
        self._opening: tuple[OpenSpec, p.Open, str] | None = None
        """What was opened with which settings, and the job that opens it."""
        self._have: set[Needs] = {"nothing"}
        self._tasks: dict[str, _Task] = {}
        """Jobs that have not ended, by id, in order of arrival."""
        self._numbers = itertools.count(1)
        self._lanes: dict[Lane, Scheduler] = {
            lane: Scheduler(
                lane,
                self._deliver,
                self._ended,
                self._at_rest if lane == "compute" else lambda: None,
                self._move,
            )
            for lane in ("compute", "open", "questions", "export")
        }
        self._closing = threading.Event()
        self._closed = False
        """Whether the journal is closed: nothing is told any more."""
        threading.Thread(target=self._watch, name="gauges", daemon=True).start()

    # -- commands ------------------------------------------------------------------------------

    def handle(self, command: p.Command, reply: Reply) -> str | None:
        """Handle a command; returns before any computation is done.

        Args:
            command: of any registered type.
            reply: called if the command is refused: now, or when what it waits for fails.

        Returns:
            The id of the job that it started, which ends with `JobEnded` or a refusal. None if it
            started no job, or one that is not announced.
        """
        try:
            with self._lock:
                return self._handle(command, reply)
        except Exception as error:
            if not isinstance(error, EngineError):
                log.exception("command %s", command)
            reply(_refused(command, *describe(error)))
            return None

    def _handle(self, command: p.Command, reply: Reply) -> str | None:
        if self._closing.is_set():
            raise UsageError("this engine was closed: open the checkpoint again")
        if isinstance(command, p.Stop):
            raise UsageError("stop an engine in this process by closing it")
        if self._opening is None and not isinstance(command, p.Open):
            raise UsageError("no checkpoint is open: open one first")
        if isinstance(command, p.Cancel):
            self._cancel(command.job)
            return None
        if isinstance(command, p.RunFirst):
            self._run_first(command.job)
            return None
        spec = spec_of(command)
        if isinstance(spec, OpenSpec):
            assert isinstance(command, p.Open)
            return self._open(spec, command, reply)
        if isinstance(spec, ChangeSpec):
            event = spec.change(self.session, command)
            if event is None:
                return None
            self._emit(event)
            if spec.then is None:
                return None
            return self._handle(msgspec.structs.replace(spec.then, ask=command.ask), reply)
        task = self._admit(spec, command, reply)
        return None if spec.announced == "never" else task.id

    def _open(self, spec: OpenSpec, command: p.Open, reply: Reply) -> str | None:
        if self._opening is not None and self._open_failed() is None:
            if command.source == self.session.source:
                # Another client of the same session: the checkpoint is open, or opening.
                notice = spec.differing(self.session.settings, command.settings)
                if notice is not None:
                    reply(notice)
                return None
            raise UsageError(f"this engine has {self.session.source} open: start another engine")
        if command.settings.fresh:
            self._journal.clear()
        should_stop = self._lanes["compute"].should_stop
        self._workspace = spec.workspace(self._facts, command.settings, should_stop)
        self._have = {"nothing"}
        self._emit(p.Opened(command.source, command.settings, spec.versions()))
        task = self._admit(spec, command, reply)
        self._opening = spec, command, task.id
        return task.id

    def _cancel(self, job: str) -> None:
        task = self._tasks.get(job)
        if task is None:
            raise UsageError(f"no job {job!r} is running")
        self._withdraw(task)

    def _run_first(self, job: str) -> None:
        task = self._tasks.get(job)
        if task is None:
            raise UsageError(f"no job {job!r} is running")
        if task.lane is None or not self._lanes[task.lane].first(job):
            raise UsageError(f"job {job!r} waits for the checkpoint: it cannot run yet")
        self._emit(p.JobFirst(job))

    def _withdraw(self, task: _Task) -> None:
        """End a task: at once while it waits, else at its job's next yield."""
        if task.job is None:
            self._end(task, "cancelled")
        else:
            assert task.lane is not None
            self._lanes[task.lane].cancel(task.id)

    # -- from a command to a job ---------------------------------------------------------------

    def _admit(self, spec: JobSpec[Any], command: p.Command, reply: Reply) -> _Task:
        """Queue a command's job, or hold it until what it needs is open."""
        context = Context(self._workspace, self.session)
        command = spec.accept(context, command)
        if (joined := self._repeated(spec, command, reply)) is not None:
            return joined
        context.job = f"{spec.kind}-{next(self._numbers)}"
        if spec.snapshot(command):
            context.snapshot = decode_session(encode_session(self.session))
        task = _Task(context.job, spec, command, spec.needs_of(command), [reply], context)
        context.should_stop = lambda: task.lane is not None and self._lanes[task.lane].should_stop()
        why = self._why_not(task.needs)
        if spec.announced == "at once":
            self._announce(task)
        elif why is not None:
            raise _Refusal(*why)
        self._tasks[task.id] = task
        if why is not None:
            self._end(task, "failed", *why)
        elif task.needs in self._have:
            self._begin(task)
        return task

    def _repeated(self, spec: JobSpec[Any], command: p.Command, reply: Reply) -> _Task | None:
        """A running job that answers this command too, if there is one."""
        under_way = [task for task in self._tasks.values() if task.spec is spec]
        if spec.repeated == "replace":
            for task in under_way:
                self._withdraw(task)
            return None
        same = [task for task in under_way if p.same_request(task.command, command)]
        if not same or spec.repeated == "run":
            return None
        if spec.repeated == "refuse":
            raise UsageError(f"a {spec.kind} is already running")
        same[0].replies.append(reply)
        return same[0]

    def _announce(self, task: _Task) -> None:
        """Resolve the recipe of a job, and announce its start."""
        spec, recipe = task.spec, ""
        if spec.recipe is not None:
            task.context.recipe, fallbacks = spec.recipe(task.context, task.command)
            recipe = recipe_hash(task.context.recipe)
            for fallback in fallbacks:
                self._emit(fallback)
        if spec.announced != "never":
            self._emit(
                p.JobStarted(
                    job=task.id,
                    kind=spec.kind,
                    title=spec.title(task.command),
                    command=task.command,
                    urgency=spec.urgency,
                    recipe=recipe,
                )
            )
            task.announced = True

    def _begin(self, task: _Task) -> None:
        """Queue a job on its lane."""
        spec = task.spec
        if not task.announced:
            try:
                self._announce(task)
            except BaseException:
                del self._tasks[task.id]
                raise
        urgency = -next(self._numbers) if spec.newest_first else spec.urgency
        task.lane = spec.lane_of(task.command)
        task.job = Job(task.id, spec.kind, urgency, self._steps_of(task))
        self._lanes[task.lane].submit(task.job)

    def _steps_of(self, task: _Task) -> AnySteps:
        """The steps of a job, begun again with less memory if it runs out on the compute lane."""
        steps, context, command = task.spec.steps, task.context, task.command
        if isinstance(task.spec, OpenSpec):
            return steps(context, command)
        begin = with_need_said(task.spec, context, command)
        task.steps = Retried(begin, lambda failure: self._relieve(task, failure))
        return task.steps

    def _relieve(self, task: _Task, failure: Failure) -> p.AnyEvent:
        """Give memory back, on the thread of the job that ran out of it.

        Raises:
            EngineError: nothing is left to give.
        """
        gave = None
        if task.lane == "compute" and self._workspace is not None:
            # The others there rest between two steps; they hold what is about to be made anew.
            for other in list(self._tasks.values()):
                if other.lane == "compute" and other.steps is not None and other is not task:
                    other.steps.begin_again()
            gave = self._workspace.relieve(
                failure.said, known_before=failure.refused is not None, again=failure.again
            )
        if gave is None:
            raise failure.refused or OutOfMemoryError(out_of_memory(failure.said))
        return p.Notice("warning", gave)

    def _open_failed(self) -> tuple[str, int] | None:
        """Why opening failed, with an exit code; None if the checkpoint is open or opening."""
        job = self._open_job()
        if job is None or job.status in ("running", "done"):
            return None
        return job.message or "opening was cancelled", job.exit_code or 1

    def _open_job(self) -> Any:
        return None if self._opening is None else self.session.jobs.get(self._opening[2])

    def _why_not(self, needs: Needs) -> tuple[str, int] | None:
        """Why a job with these needs can never run; None while it may."""
        if needs in self._have:
            return None
        if (failed := self._open_failed()) is not None:
            return failed
        job = self._open_job()
        if job is not None and job.status == "done":
            return f"the checkpoint was opened without its {needs}", UsageError.exit_code
        return None

    def _release(self, needs: Needs) -> None:
        """Start the jobs that waited for this."""
        self._have.add(needs)
        for task in list(self._tasks.values()):
            if task.job is None and task.needs == needs:
                try:
                    self._begin(task)
                except Exception as error:
                    if not isinstance(error, EngineError):
                        log.exception("command %s", task.command)
                    self._refuse(task, *describe(error))

    # -- from a job to events ------------------------------------------------------------------

    def _deliver(self, job: Job, event: p.AnyEvent) -> None:
        with self._lock:
            if self._closed:
                return
            self._emit(event)
            if isinstance(event, p.LayersListed):
                self._release("checkpoint")
                self._renew()
            elif isinstance(event, p.ModelReady):
                assert self._opening is not None
                self._release("model")
                spec, command, _ = self._opening
                for then in spec.then(self.session, command):
                    self.handle(then, _nobody)

    def _renew(self) -> None:
        """Restart jobs that depend on the layer names: a new listing may have renamed them."""
        alive = (t for t in self._tasks.values() if t.job is None or not t.job.cancelled)
        newest = {task.spec: task for task in alive if task.spec.repeated == "replace"}
        for task in newest.values():
            self.handle(task.command, task.replies[0])

    def _move(self, job: Job, lane: Lane) -> None:
        """Move a job to another lane."""
        with self._lock:
            task = self._tasks[job.id]
            assert task.lane is not None
            self._lanes[task.lane].release(job)
            task.lane = lane
            self._lanes[lane].submit(job)

    def _ended(self, job: Job, outcome: Outcome | None, error: BaseException | None) -> None:
        with self._lock:
            if self._closed:
                return  # announced as cancelled already
            task = self._tasks[job.id]
            if error is not None and not isinstance(error, EngineError):
                log.error("job %s failed", job.id, exc_info=error)
            if error is not None:
                self._end(task, "failed", *describe(error))
            elif outcome is None:
                self._end(task, "cancelled")
            else:
                self._end(task, "done", outcome=outcome)
            if isinstance(task.spec, OpenSpec):
                self._fail_waiting()

    def _fail_waiting(self) -> None:
        """End jobs that wait for something that failed to open."""
        for task in list(self._tasks.values()):
            if task.job is None and (why := self._why_not(task.needs)) is not None:
                self._end(task, "failed", *why)

    def _end(
        self,
        task: _Task,
        status: p.JobStatus,
        message: str = "",
        exit_code: int = 0,
        outcome: Outcome | None = None,
    ) -> None:
        """Announce the end of a job; an unannounced one is refused, unless it is done."""
        if not task.announced:
            if status == "done":
                self._tasks.pop(task.id, None)
            else:
                self._refuse(task, message or f"{task.spec.kind} was cancelled", exit_code or 1)
            return
        self._tasks.pop(task.id, None)
        outcome = outcome or Outcome()
        self._emit(
            p.JobEnded(
                job=task.id,
                kind=task.spec.kind,
                status=status,
                message=message,
                exit_code=exit_code,
                resumed=outcome.resumed,
                measured=outcome.measured,
                timings=outcome.timings,
                result={} if outcome.result is None else msgspec.to_builtins(outcome.result),
            )
        )

    def _refuse(self, task: _Task, message: str, exit_code: int) -> None:
        self._tasks.pop(task.id, None)
        for reply in task.replies:
            reply(_refused(task.command, message, exit_code))

    def _at_rest(self) -> None:
        """Check that a step left no grad mode or patch, and the reference weights in place."""
        if self._workspace is not None:
            self._workspace.assert_at_rest()

    # -- the engine's own life -----------------------------------------------------------------

    def _say_damage(self) -> None:
        for sentence in self._facts.damage():
            self._emit(p.Notice("warning", sentence))

    def _watch(self) -> None:
        verified = False
        while not self._closing.wait(GAUGE_SECONDS):
            if self.busy():
                try:
                    model = self.session.model
                    self._emit(read_gauges(model.device if model is not None else ""))
                except Exception:
                    log.exception("the gauges cannot be read")
                    return
            elif not verified and self._opening is not None:
                verified = True  # once, when nothing else is to be done
                try:
                    self._facts.verify()
                except EngineError:
                    log.exception("the facts cannot be verified")

    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        return any(task.announced for task in list(self._tasks.values()))

    def close(self) -> None:
        """End every job; results are saved. To close it again changes nothing.

        After this, commands are refused. Jobs that still wait end as cancelled, so that no client
        waits for them forever.
        """
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
        for name in ("compute", "questions", "export"):
            self._lanes[name].close()
        # Not every load can be interrupted; its thread is a daemon.
        self._lanes["open"].close(timeout=2.0)
        with self._lock:
            for task in list(self._tasks.values()):
                self._end(task, "cancelled")
            self._closed = True
            self._recorder.close()
            self._facts.close()


class _Refusal(EngineError):
    """A command refused with the exit code of another failure."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _refused(command: p.Command, message: str, exit_code: int) -> p.Refused:
    """A refusal, with the layers that the command names."""
    layers: Iterable[str] = getattr(command, "layers", ())
    if isinstance(layer := getattr(command, "layer", None), str):
        layers = (layer,)
    return p.Refused(type(command).__name__, message, exit_code, tuple(layers), command.ask)
