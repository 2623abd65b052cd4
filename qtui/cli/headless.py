"""Run one command without a screen: events in, an outcome out, messages on stderr.

A run attaches to the engine that already has the checkpoint open; if there is none, or it ends, it
runs one in this process. Both look the same from here.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import TypeAlias

import msgspec

from engine import client
from engine import protocol as p
from engine.errors import EngineError, UsageError
from engine.report.tables.parts import instead
from engine.session import Job, Session, is_opening
from qtui.cli.commands import invoked
from qtui.cli.exit import closed_in_the_end
from qtui.cli.progress import Meter
from qtui.views.progress import about, time_left
from qtui.views.sweeps import formats_of

OfRecipe: TypeAlias = p.Evaluate | p.Export | p.Diagnose | p.FindSymptoms | p.MeasureTexts
Ask: TypeAlias = p.Command | Callable[[Session], OfRecipe]
"""A command that has a job, from a plugin too. With a recipe, a function of the opened session,
which knows the layers."""
Question: TypeAlias = p.AskHistogram | p.AskExperts
"""A question about one layer, in addition to a triage."""
Answer: TypeAlias = p.HistogramReady | p.ExpertsReady

ATTACHED = 2
"""Engines of others that a run attaches to, one after the end of the other."""
TICK = 0.2
"""Seconds to wait for an event before looking at the meter again."""
FALLBACKS_SAID = 10
"""Fallbacks that are printed one by one; the rest are counted, and appear only in JSON."""

NOT_WHOLE = "the incomplete folder is deleted"
"""What happens to an export that does not finish."""

MUST_AGREE = (
    "text", "calib", "imatrix", "calib_tokens", "tokens", "seq_len", "stride", "bos", "sigma",
    "device", "dtype", "seed", "draws",
    "trust_remote_code",
)  # fmt: skip
"""Settings that results depend on: an engine with different ones cannot be used."""
MUST_AGREE_OF_FILES: dict[type[p.Command], tuple[str, ...]] = {
    p.Triage: ("sigma", "trust_remote_code"),
    p.Export: ("trust_remote_code",),
}
"""Those that matter to commands that only read files; all of them matter to commands not listed."""


class RunError(EngineError):
    """A run that did not finish, with the engine's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code or 1


class _DisagreesError(EngineError):
    """The engine that has the checkpoint open measures with other settings."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    session: Session
    job: Job
    formats: tuple[str, ...] = ()
    """Canonical formats that were measured, or that some layer could not hold."""
    score: p.RecipeScore | None = None
    """The recipe's score, of an evaluation."""
    answers: tuple[Answer, ...] = ()
    """To the questions, in their order."""
    exported: p.Exported | None = None
    """What was written, of an export."""


def measure(
    source: str,
    settings: p.Settings,
    ask: Ask,
    meter: Meter,
    questions: Sequence[Question] = (),
    of: type[OfRecipe] = p.Evaluate,
    *,
    calibrates: bool = False,
) -> Outcome:
    """Open a checkpoint, measure or export, and wait for the end.

    Args:
        source: ``demo``, a folder, or a hub id.
        settings: how everything is measured.
        ask: what to measure.
        meter: where progress is shown.
        questions: about single layers, asked after the measurement; their layers are checked
            before it begins.
        of: type of the command, where ``ask`` is a function of the session.
        calibrates: whether an export needs the model, with calibration text.

    Raises:
        RunError: it was refused, failed, or was cancelled.
        UsageError: a question names an unknown layer.
        EngineError: the engine cannot be reached, or nothing can be saved.
        KeyboardInterrupt: after the job was cancelled; its results are saved.
    """
    kind: type[p.Command]
    if callable(ask):
        kind, of_files = of, of is p.Export and not calibrates
    else:
        kind, of_files = type(ask), not client.needs_model(ask)

    def run(engine: client.Client, *, attached: bool) -> Outcome:
        asked = tuple(questions)
        started = _Run(engine, ask, meter, kind, asked, attached=attached, of_files=of_files)
        return started.follow(source, settings)

    running, patience = None, 0.0
    for _ in range(ATTACHED):
        if (running := client.attached(source, invoked())) is None:
            break
        with closing(running):
            try:
                return run(running, attached=True)
            except _DisagreesError as error:
                meter.say(f"{error}: measuring beside it; results are shared")
                break
            except client.EngineGoneError as error:
                # Stopped by somebody, or killed: what it has measured is found again.
                meter.say(f"{error.reason}: going on without it; its results are saved")
                patience = client.END_SECONDS
    client.own_process(source)
    # What only reads files is quick to do again: it needs no state folder.
    unsaved = (lambda sentence: meter.say(f"warning: {sentence}")) if of_files else None
    own = client.in_process(source, unsaved=unsaved, serve=True, patience=patience)
    with closed_in_the_end(own) as engine:
        if engine.beside and running is None:
            meter.say(f"another run has {source} open: measuring beside it; results are shared")
        return run(engine, attached=False)


class _Run:
    """One command while it runs."""

    def __init__(
        self,
        engine: client.Client,
        ask: Ask,
        meter: Meter,
        kind: type[p.Command],
        questions: tuple[Question, ...] = (),
        *,
        attached: bool,
        of_files: bool,
    ) -> None:
        self._engine, self._ask, self._meter, self._attached = engine, ask, meter, attached
        self._questions = questions
        self._answers: dict[Question, Answer] = {}
        self._kind = kind
        self._of_files = of_files
        self._exported: p.Exported | None = None
        self._open = False
        self._loaded_before = False
        """Whether the engine had the model loaded: then this run waited for no loading."""
        self._mark = uuid.uuid4().hex
        self._sent: p.Command | None = None
        self._job: str | None = None
        self._label = ""
        """The job's kind, beside its progress."""
        self._following = False
        self._recipe = ""
        self._formats: dict[str, None] = {}
        self._fallbacks: set[tuple[str, str]] = set()

    def follow(self, source: str, settings: p.Settings) -> Outcome:
        """Send the command and process events until its job has ended."""
        if self._attached:  # before it is asked: it would say that it ignores our settings
            if not self._engine.session.source and (event := self._engine.receive(TICK)):
                self._take(event)
            if self._engine.session.source:
                self._check_settings(settings)
            self._loaded_before = self._engine.session.model is not None
        self._engine.send(p.Open(source, settings, model=not self._of_files, take_up=False))
        ended: p.JobEnded | None = None
        try:
            while True:
                if self._sent is None:
                    self._send_if_ready(settings)
                event = self._engine.receive(TICK)
                if event is not None and (job := self._take(event)) is not None:
                    ended = job
                    for question in self._questions:
                        self._engine.send(question)
                if ended is not None and len(self._answers) == len(set(self._questions)):
                    return self._outcome(ended)
        except KeyboardInterrupt:
            if self._job is not None and not self._following:
                with suppress(EngineError):
                    self._engine.send(p.Cancel(self._job))
            raise
        finally:
            self._meter.clear()
            if len(self._fallbacks) > FALLBACKS_SAID:
                self._meter.say(f"fallbacks: {len(self._fallbacks)} in total")

    def _send_if_ready(self, settings: p.Settings) -> None:
        session = self._engine.session
        # State that an earlier run left in the session does not count as open.
        if not (self._open or (self._attached and session.source)):
            return
        if self._attached:
            self._check_settings(settings)
        if self._questions and not _names_are_listed(session):
            return
        for question in self._questions:
            _known_layer(session, question.layer)
        if not callable(self._ask):
            asked: p.Command = self._ask
        elif (_names_are_listed if self._of_files else _names_are_final)(session):
            asked = self._ask(session)
        else:
            return
        # Other clients may send the same command: ours is recognised by its mark.
        self._sent = msgspec.structs.replace(asked, ask=self._mark)
        self._engine.send(self._sent)

    def _check_settings(self, settings: p.Settings) -> None:
        if not self._of_files and _without_model(self._engine.session):
            raise _DisagreesError("another run has the checkpoint open without its model")
        names = MUST_AGREE_OF_FILES.get(self._kind, MUST_AGREE)
        _agree(self._engine.session, settings, names if self._of_files else MUST_AGREE)

    def _take(self, event: p.AnyEvent) -> p.JobEnded | None:
        """Report an event on stderr; return the end of our job."""
        match event:
            case p.Notice():
                self._meter.say(event.message if event.level == "info" else _warned(event))
            case p.Fallback():
                self._fallback(event)
            case p.Stage():
                self._meter.show(event.name, event.done, event.total, in_bytes=event.in_bytes)
            case p.Opened():
                self._open = True
            case p.JobStarted(ask=self._mark):
                self._job, self._label = event.job, event.kind
                self._recipe = event.recipe
                self._formats.update(dict.fromkeys(formats_of(event.command)))
            case p.Progress(job=job) if job == self._job:
                self._meter.show(
                    self._label, event.done, event.total, time_left(event), about(event),
                    in_bytes=event.in_bytes,
                )  # fmt: skip
            case p.Exported(job=job) if job == self._job:
                self._exported = event
            case p.HistogramReady() | p.ExpertsReady():
                for question in self._questions:
                    if _answers(event, question):
                        self._answers[question] = event
            case p.Refused():
                self._refused(event)
            case p.JobEnded(kind="open", status=status) if status != "done":
                raise RunError(event.message or "opening was cancelled", event.exit_code)
            case p.JobEnded(job=job, kind=kind) if job == self._job:
                if event.status == "failed":
                    raise RunError(event.message or f"{kind} failed", event.exit_code)
                if event.status == "cancelled":
                    kept = "its results are saved" if kind != "export" else NOT_WHOLE
                    raise RunError(f"{kind} was cancelled: {kept}", 130)
                return event
            case _:
                pass
        return None

    def _refused(self, event: p.Refused) -> None:
        """Follow another client's equal sweep if one is running; any other refusal is an error."""
        asked = any(
            type(question).__name__ == event.command
            and (not event.layers or question.layer in event.layers)
            for question in self._questions
        )
        ours = event.ask == self._mark or (event.command == "Open" and not self._attached)
        if not ours and not asked:
            return
        if isinstance(self._sent, p.Sweep):
            for job in self._engine.session.jobs.values():
                if job.status == "running" and p.same_request(job.command, self._sent):
                    self._label = job.kind
                    self._job, self._following = job.id, True
                    self._meter.say("this sweep is already running: following it")
                    return
        raise RunError(event.message, event.exit_code)

    def _fallback(self, event: p.Fallback) -> None:
        self._formats.setdefault(event.format)
        if (event.layer, event.format) in self._fallbacks:
            return
        self._fallbacks.add((event.layer, event.format))
        if len(self._fallbacks) <= FALLBACKS_SAID:
            self._meter.say(
                f"fallback: {event.layer} {instead(event.holds)}, not {event.format}: {event.why}"
            )

    def _outcome(self, ended: p.JobEnded) -> Outcome:
        session = self._engine.session
        formats, score = tuple(self._formats), None
        if isinstance(self._sent, p.Sweep):
            there = {key.format for key in session.effects.known(self._sent.direction)}
            known = [each for each in self._sent.formats if each in there]
            formats = tuple(dict.fromkeys([*known, *formats]))
        if self._kind in (p.Evaluate, p.MeasureTexts):
            score = session.scores.get(self._recipe)
            if score is None:
                raise RunError("the evaluation ended without a score", 1)
        if self._kind is p.Export and self._exported is None:
            raise RunError("the export ended without reporting its output", 1)
        job = session.jobs[ended.job]
        if self._loaded_before and "load_s" in job.timings:
            job = msgspec.structs.replace(job, timings={**job.timings, "load_s": 0.0})
        return Outcome(
            session=session,
            job=job,
            formats=formats,
            score=score,
            answers=tuple(self._answers[question] for question in self._questions),
            exported=self._exported,
        )


def _without_model(session: Session) -> bool:
    """Whether the checkpoint was opened, or is being opened, without its model."""
    opened = [each.command for each in session.jobs.values() if isinstance(each.command, p.Open)]
    return bool(opened) and not opened[-1].model


def _names_are_listed(session: Session) -> bool:
    """Whether opening has listed every layer by name."""
    return bool(session.layers.names) and not is_opening(session)


def _answers(event: Answer, question: Question) -> bool:
    """Whether this answers the question; an engine sends all answers to every client."""
    match question, event:
        case p.AskHistogram(), p.HistogramReady():
            # The answer has the canonical name of the format.
            same_grid = bool(question.format) == bool(event.format)
            same = same_grid and len(event.counts) == question.bins
            return same and event.layer == question.layer
        case p.AskExperts(), p.ExpertsReady():
            return event.layer == question.layer
        case _:
            return False


def _known_layer(session: Session, layer: str) -> None:
    if session.row(layer) is not None:
        return
    names = session.layers.names
    near = (
        difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
        or [name for name in names if layer.lower() in name.lower()][:3]
    )
    meant = f"did you mean {' or '.join(near)}?" if near else f"layer names look like {names[-1]}"
    raise UsageError(f"{session.source} has no layer {layer!r}: {meant}")


def _names_are_final(session: Session) -> bool:
    """Whether the loaded model has confirmed the names of the layers."""
    return session.model is not None and _names_are_listed(session)


def _agree(session: Session, settings: p.Settings, names: Sequence[str]) -> None:
    """Raise if an engine's settings differ in these names."""
    if settings.fresh:
        raise _DisagreesError(
            f"--fresh needs an engine of its own, and one has {session.source} open already"
        )
    for name in names:
        theirs, ours = getattr(session.settings, name), getattr(settings, name)
        if theirs != ours:
            theirs, ours = ("none" if each in (None, "") else each for each in (theirs, ours))
            raise _DisagreesError(
                f"an engine already has {session.source} open with {name} {theirs}, not {ours}"
            )


def _warned(notice: p.Notice) -> str:
    return f"{notice.level}: {notice.message}"
