"""Results of a `Model`: iterate each while it arrives, or ask for the whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from engine import protocol as p
from engine.client.in_process import JobError
from engine.formats.grammar import parse_format
from engine.report import documents, schema, tables
from engine.report.json import encode
from engine.session import Job, Session

D = TypeVar("D", bound=schema.Document)


class Source(Protocol):
    """What a result requires of its model."""

    settings: p.Settings

    @property
    def session(self) -> Session:
        """The model's session."""

    def receive(self) -> p.AnyEvent | None:
        """Wait a moment for the next event, which is passed to every running result."""

    def cancel(self, job: str) -> None:
        """Cancel a job."""


class Result(Generic[D]):
    """The outcome of one command, complete or still running.

    Iterating yields facts, partial scores and progress as they arrive. ``print`` shows a table;
    `rows`, `to_dict` and `document` wait for the end. Interrupting an iteration cancels the job;
    its results are saved.
    """

    yields: tuple[type[p.AnyEvent] | type[p.AnyFact], ...] = ()
    """Types of events and facts that iteration yields."""

    def __init__(self, model: Source, command: p.AnyCommand) -> None:
        self.command = p.identified(command)
        self.job = ""
        """The id of the engine's job."""
        self._model = model
        self._arrived: deque[Any] = deque()
        self._ended: p.JobEnded | None = None
        self._refused: p.Refused | None = None
        self._formats: dict[str, None] = {}
        """Canonical formats that were requested, or that some layer could not hold."""
        self._just_fell_back: dict[str, None] = {}
        """Formats of fallbacks that nothing else has followed yet."""
        self._seen: set[str] = set()
        """Keys of facts that have arrived: another job may announce the same ones."""
        self._document: D | None = None

    # -- called by the model ----------------------------------------------------------------------

    def started(self, job: str) -> None:
        """Called when the job was accepted."""
        self.job = job

    def take(self, event: p.AnyEvent) -> bool:
        """Handle an event; returns whether it was the last."""
        # The fallbacks of a recipe are announced just before its job starts.
        fell_back, self._just_fell_back = self._just_fell_back, {}
        match event:
            case p.Learned():
                self._learn(event)
            case p.Fallback(format=format):
                self._just_fell_back = {**fell_back, format: None}
            case p.JobStarted(job=self.job, command=command):
                formats = getattr(command, "formats", ())
                self._formats.update(dict.fromkeys([*formats, *fell_back]))
            case p.Refused(ask=self.command.ask):
                self._refused = event
                return True
            case p.JobEnded(job=self.job):
                self._ended = event
                return True
            case _ if isinstance(event, self.yields) and getattr(event, "job", "") == self.job:
                self._arrived.append(event)
        return False

    def _learn(self, event: p.Learned) -> None:
        for key, fact in zip(event.keys, event.facts, strict=True):
            if key not in self._seen and isinstance(fact, self.yields) and self._is_mine(fact):
                self._seen.add(key)
                self._arrived.append(fact)

    def _is_mine(self, fact: Any) -> bool:
        """Whether a fact of a type in `yields` belongs to this result, not to another job."""
        return True

    # -- for the caller ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Yield what arrived since the last iteration, then new events until the end.

        Raises:
            JobError: the job failed or was cancelled.
        """
        try:
            while self._arrived or not self.done:
                if self._arrived:
                    yield self._arrived.popleft()
                else:
                    self._model.receive()
        except KeyboardInterrupt:
            self.cancel()
            raise
        if self._refused is not None:
            raise JobError(self._refused.message, self._refused.exit_code)
        if self._ended is not None and self._ended.status != "done":
            said = self._ended.message or f"{self._ended.kind} was {self._ended.status}"
            raise JobError(said, self._ended.exit_code)

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            JobError: the job failed or was cancelled.
        """
        for _ in self:
            pass

    @property
    def done(self) -> bool:
        """Whether the job has ended, by the events received so far."""
        return self._ended is not None or self._refused is not None

    def cancel(self) -> None:
        """Cancel the job; its results are saved."""
        if not self.done:
            self._model.cancel(self.job)

    @property
    def document(self) -> D:
        """The document of the command's ``--json`` option, as a typed Struct.

        Raises:
            JobError: the job failed or was cancelled.
        """
        if self._document is None:
            self.wait()
            self._document = self._make(self._model.session.jobs[self.job])
        return self._document

    def _make(self, job: Job) -> D:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of the command; non-finite numbers are None, unknown ones are missing.

        Raises:
            JobError: the job failed or was cancelled.
        """
        made: dict[str, Any] = msgspec.json.decode(encode(self.document))
        return made

    def rows(self) -> list[dict[str, Any]]:
        """A flat dict per layer and format, for a data frame; keys are paths of the JSON document.

        Raises:
            JobError: the job failed or was cancelled.
        """
        return [flat(each) for each in self._parts(self.to_dict())]

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        return list(document["layers"])

    def __str__(self) -> str:
        as_text: Callable[[Any], str] = next(
            make for of, make in tables.TEXTS.items() if isinstance(self.document, of)
        )
        return as_text(self.document).rstrip("\n")


class TriageResult(Result[schema.TriageDocument]):
    """Weight statistics and errors. Iterating yields `LayerWeights` and `LayerError` facts."""

    yields = (p.LayerWeights, p.LayerError)

    def _is_mine(self, fact: p.LayerWeights | p.LayerError) -> bool:
        return isinstance(fact, p.LayerWeights) or fact.format in self._formats

    def _make(self, job: Job) -> schema.TriageDocument:
        return documents.triage_document(self._model.session, job)


class SweepResult(Result[schema.SweepDocument]):
    """The effect of every layer. Iterating yields `Estimate`, `Sensitivity` and `Progress`."""

    yields = (p.Estimate, p.Sensitivity, p.Progress)

    def __init__(self, model: Source, command: p.Sweep) -> None:
        super().__init__(model, command)
        self._sweep = command
        estimated = model.settings.estimate_formats
        self._beside = {str(parse_format(format)) for format in estimated}
        """Canonical formats that are estimated beside those asked for."""

    def _is_mine(self, fact: p.Sensitivity | p.Estimate) -> bool:
        # To estimate what is changed together begins with its layers.
        alone = isinstance(fact, p.Estimate) and fact.by == "layer"
        return (
            fact.direction == self._sweep.direction
            and (alone or fact.by == self._sweep.by)
            and (fact.format in self._formats or (alone and fact.format in self._beside))
        )

    def _make(self, job: Job) -> schema.SweepDocument:
        asked = self._sweep
        return documents.sweep_document(
            self._model.session,
            tuple(self._formats),
            asked.direction,
            job,
            asked.by,
            bool(self._model.settings.estimate_formats),
        )


class EvaluationResult(Result[schema.EvalDocument]):
    """A recipe's score. Iterating yields `RecipeScore`, which narrows until ``done`` is true."""

    yields = (p.RecipeScore,)

    def __init__(self, model: Source, command: p.Evaluate | p.MeasureTexts, *, name: str) -> None:
        super().__init__(model, command)
        self._name = name
        self._recipe = ""

    def take(self, event: p.AnyEvent) -> bool:
        """See `Result`."""
        match event:
            case p.JobStarted(job=self.job):
                self._recipe = event.recipe
            case p.RecipePartial(score=score) if score.recipe == self._recipe:
                self._arrived.append(score)
        return super().take(event)

    def _is_mine(self, fact: p.RecipeScore) -> bool:
        return fact.recipe == self._recipe

    def _make(self, job: Job) -> schema.EvalDocument:
        session = self._model.session
        if (score := session.scores.get(job.recipe)) is None:
            raise JobError("the evaluation ended without a score", 1)
        return documents.eval_document(session, score, self._name, tuple(self._formats), job)

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        return [document["recipe"]]


class ComparisonResult(Result[schema.CompareDocument]):
    """Finished checkpoints against their original. Iterating yields facts, layer by layer."""

    yields = (p.ArtefactLayer, p.ArtefactScore, p.LayerRestored)

    def __init__(self, model: Source, command: p.Compare) -> None:
        super().__init__(model, command)
        self._mine: set[str] = set()

    def take(self, event: p.AnyEvent) -> bool:
        """See `Result`."""
        if isinstance(event, p.ArtefactOpened):
            self._mine.add(event.fingerprint)
        return super().take(event)

    def _is_mine(self, fact: p.ArtefactLayer | p.ArtefactScore | p.LayerRestored) -> bool:
        return fact.artefact in self._mine

    def _make(self, job: Job) -> schema.CompareDocument:
        return documents.compare_document(self._model.session, job)

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        rows = []
        for artefact in document["artefacts"]:
            whole = {"checkpoint": artefact["name"]}
            rows += [whole | layer for layer in artefact["layers"]]
        return rows


class CalibrationResult(Result[schema.CalibrateDocument]):
    """Calibration sets compared. Iterating yields `CalibrationCheck`, `CalibrationScore` facts, and
    `Progress`."""

    yields = (p.CalibrationCheck, p.CalibrationScore, p.Progress)

    def __init__(self, model: Source, command: p.Calibrate) -> None:
        super().__init__(model, command)
        self._method = str(parse_format(command.method))

    def _is_mine(self, fact: p.CalibrationCheck | p.CalibrationScore) -> bool:
        return isinstance(fact, p.CalibrationCheck) or fact.method == self._method

    def _make(self, job: Job) -> schema.CalibrateDocument:
        return documents.calibrate_document(self._model.session, job)

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        """One row for every number of samples of a set on a text."""
        return [
            {key: value for key, value in part.items() if key != "texts"} | judged
            for part in document["sets"]
            for judged in part["texts"]
        ]


class SymptomsResult(Result[schema.SymptomsDocument]):
    """What a recipe says and answers. Iterating yields a `Continued` for every prompt."""

    yields = (p.Continued,)

    def __init__(self, model: Source, command: p.FindSymptoms, *, name: str) -> None:
        super().__init__(model, command)
        self._name = name

    def _is_mine(self, fact: p.Continued) -> bool:
        job = self._model.session.jobs.get(self.job)
        return job is not None and fact.recipe == job.recipe

    def _make(self, job: Job) -> schema.SymptomsDocument:
        return documents.symptoms_document(
            self._model.session, self._name, tuple(self._formats), job
        )

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        return [*document["prompts"], *document["tasks"]]


class ExportResult(Result[schema.ExportDocument]):
    """A recipe written as a checkpoint. Iterating yields `Progress`, then `Exported`."""

    yields = (p.Progress, p.Exported)

    def __init__(self, model: Source, command: p.Export) -> None:
        super().__init__(model, command)
        self._exported: p.Exported | None = None

    def take(self, event: p.AnyEvent) -> bool:
        """See `Result`."""
        if isinstance(event, p.Exported) and event.job == self.job:
            self._exported = event
        return super().take(event)

    def _make(self, job: Job) -> schema.ExportDocument:
        if self._exported is None:
            raise JobError("the export ended without an `Exported` event", 1)
        return documents.export_document(
            self._model.session, self._exported, tuple(self._formats), job
        )

    def _parts(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": name, "format": format} for name, format in document["recipe"].items()]


def flat(part: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A nested object flattened to one level, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in part.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{path}{key}."))
        else:
            found[path + key] = value
    return found
