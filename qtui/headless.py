"""One command run to its end with no screen: events in, an outcome out, everything said on stderr.

A run attaches to the engine that already has the checkpoint; where there is none it runs one in
this process. Both look the same from here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TypeAlias

import msgspec

from engine import client
from engine import protocol as p
from engine.errors import EngineError
from engine.session import Job, Session, recipe_hash
from qtui.progress import Meter

Measure: TypeAlias = p.Triage | p.Sweep | p.Evaluate
Ask: TypeAlias = Measure | Callable[[Session], p.Evaluate]
"""What to measure; where it depends on the layers, a function of the opened session."""

TICK = 0.2
"""Seconds to wait for an event before looking at the meter again."""
FALLBACKS_SAID = 10
"""Fallbacks that are told one by one; the rest are counted, and stand in the document."""

_KINDS: dict[type[Measure], p.JobKind] = {
    p.Triage: "triage",
    p.Sweep: "sweep",
    p.Evaluate: "evaluate",
}


class RunError(EngineError):
    """A run that did not come to its end, with the exit code the engine gave."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code or 1


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A run that came to its end."""

    session: Session
    job: Job
    formats: tuple[str, ...] = ()
    """Canonical formats that facts or fallbacks came for, in the order asked for where known."""
    score: p.RecipeScore | None = None
    """The recipe's score, of an evaluation."""


def measure(source: str, settings: p.Settings, ask: Ask, meter: Meter) -> Outcome:
    """Open a checkpoint, measure, and wait for the end.

    Raises:
        RunError: it was refused, failed, or somebody ended it.
        EngineError: the engine cannot be reached or ended.
        KeyboardInterrupt: after the job was told to stop; what it measured is kept.
    """
    engine = client.attached(source) or client.in_process(source)
    with closing(engine):
        return _Run(engine, ask, meter).follow(source, settings)


class _Run:
    """One command on its way."""

    def __init__(self, engine: client.InProcess, ask: Ask, meter: Meter) -> None:
        self._engine, self._ask, self._meter = engine, ask, meter
        self._kind: p.JobKind = "evaluate" if callable(ask) else _KINDS[type(ask)]
        # Jobs that somebody else has going on an engine that was attached to are not ours.
        self._others = set(engine.session.jobs)
        self._sent: Measure | None = None
        self._job: str | None = None
        self._formats: dict[str, None] = {}
        self._score: p.RecipeScore | None = None
        self._fallbacks: set[tuple[str, str]] = set()

    def follow(self, source: str, settings: p.Settings) -> Outcome:
        """Send what is asked for and take events until it has ended."""
        ask = self._ask
        self._engine.send(p.Open(source, settings, model=not isinstance(ask, p.Triage)))
        if not callable(ask):
            self._send(ask)
        try:
            while True:
                event = self._engine.receive(TICK)
                if event is not None and (job := self._take(event)) is not None:
                    return self._outcome(job, settings)
                if self._sent is None and callable(ask) and self._opened():
                    self._send(ask(self._engine.session))
        except KeyboardInterrupt:
            if self._job is not None:
                self._engine.send(p.Cancel(self._job))
            raise
        finally:
            self._meter.clear()
            if len(self._fallbacks) > FALLBACKS_SAID:
                self._meter.say(f"fallbacks: {len(self._fallbacks)} in all")

    def _send(self, command: Measure) -> None:
        self._sent = command
        self._engine.send(command)

    def _opened(self) -> bool:
        """Whether the layers' names are final: the model has had its say on them."""
        session = self._engine.session
        opening = any(job.kind == "open" and job.status == "running" for job in _jobs(session))
        return session.model is not None and bool(session.layers.names) and not opening

    def _take(self, event: p.AnyEvent) -> p.JobEnded | None:
        """Tell a person about an event; the end of our job is returned."""
        match event:
            case p.Notice():
                self._meter.say(event.message if event.level == "info" else _warned(event))
            case p.Fallback():
                self._fallback(event)
            case p.Stage():
                self._meter.show(event.name, event.done, event.total)
            case p.JobStarted(kind=kind) if kind == self._kind and self._sent is not None:
                self._job = self._job or event.job
            case p.Progress() if self._is_ours(event.job):
                self._meter.show(
                    self._kind, event.done, event.total, event.seconds_left, event.detail
                )
            case p.Learned():
                for fact in event.facts:
                    self._learn(fact)
            case p.Refused() if self._concerns_us(event):
                raise RunError(event.message, event.exit_code)
            case p.JobEnded(kind="open", status=status) if status != "done":
                raise RunError(event.message or "opening was cancelled", event.exit_code)
            case p.JobEnded(kind=kind) if kind == self._kind and self._is_ours(event.job):
                if event.status == "failed":
                    raise RunError(event.message or f"{kind} failed", event.exit_code)
                if event.status == "cancelled":
                    raise RunError(f"{kind} was cancelled: what it measured is kept", 130)
                return event
            case _:
                pass
        return None

    def _is_ours(self, job: str) -> bool:
        return job == self._job if self._job is not None else job not in self._others

    def _concerns_us(self, event: p.Refused) -> bool:
        names = {"open", self._kind, type(self._sent).__name__.lower()}
        return event.command.lower() in names

    def _fallback(self, event: p.Fallback) -> None:
        self._formats.setdefault(event.format)
        if (event.layer, event.format) in self._fallbacks:
            return
        self._fallbacks.add((event.layer, event.format))
        if len(self._fallbacks) <= FALLBACKS_SAID:
            self._meter.say(f"fallback: {event.layer} is kept, not {event.format}: {event.why}")

    def _learn(self, fact: p.AnyFact) -> None:
        match fact:
            case p.Sensitivity() if self._kind == "sweep":
                self._formats.setdefault(fact.format)
            case p.RecipeScore(done=True) if self._kind == "evaluate":
                self._score = fact
            case _:
                pass

    def _outcome(self, ended: p.JobEnded, settings: p.Settings) -> Outcome:
        session = self._engine.session
        job = session.jobs.get(ended.job) or Job(ended.job, ended.kind, ended.kind, 0)
        if isinstance(self._sent, p.Sweep):
            asked = self._sent.formats or settings.sweep_formats
            known = [each for each in asked if f"{self._sent.direction}/{each}" in session.measured]
            return Outcome(
                session=session, job=job, formats=tuple(dict.fromkeys([*known, *self._formats]))
            )
        if isinstance(self._sent, p.Evaluate):
            layers = self._sent.layers
            score = self._score or (
                session.scores.get(recipe_hash(layers)) if layers is not None else None
            )
            if score is None:
                raise RunError("the evaluation ended without a score", 1)
            return Outcome(session=session, job=job, score=score)
        return Outcome(session=session, job=job)


def _jobs(session: Session) -> list[Job]:
    return list(session.jobs.values())


def _warned(notice: p.Notice) -> str:
    return f"{notice.level}: {notice.message}"
