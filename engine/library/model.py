"""`Model`: an open checkpoint in this process, and its jobs."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from engine import protocol as p
from engine.client.in_process import InProcess, JobError, in_process
from engine.errors import EngineError, UsageError
from engine.export.target import target_named
from engine.library.diagnosis import DiagnoseResult
from engine.library.results import (
    CalibrationResult,
    ComparisonResult,
    EvaluationResult,
    ExportResult,
    Result,
    SweepResult,
    SymptomsResult,
    TriageResult,
)
from engine.profiles import DEFAULT_PROFILE, load_profile
from engine.recipes.file import built_in, names_file, read_recipe
from engine.session import Session

WAIT = 0.2
"""Seconds to wait for an event at a time, so that the wait can be interrupted."""

Recipe = str | Path | Mapping[str, str]
"""The name of a built-in recipe, a recipe file, or formats by layer name."""
OfRecipe = TypeVar(
    "OfRecipe", p.Evaluate, p.Export, p.MeasureErrors, p.FindSymptoms, p.MeasureTexts
)
R = TypeVar("R", bound=Result[Any])


class Model:
    """An open checkpoint. Close it, or use it in a ``with`` block.

    Jobs run on the engine's own thread. Iterate a result while it arrives, or ask for its table,
    rows or document, which waits for the end. Results are saved in the fact store, so nothing is
    measured twice.
    """

    def __init__(self, source: str, settings: p.Settings, *, model: bool = True) -> None:
        """
        Args:
            source: ``demo``, a folder, or a hub id.
            settings: how everything is measured.
            model: False reads only the files, which is enough for a triage.

        Raises:
            EngineError: the checkpoint cannot be read.
        """
        self.settings = settings
        # What only reads files is quick to do again: it needs no state folder.
        unsaved = None if model else functools.partial(warnings.warn, stacklevel=3)
        self._engine: InProcess = in_process(source, unsaved=unsaved)
        self._running: list[Result[Any]] = []
        self._turn = threading.RLock()
        try:
            self._open(p.Open(source, settings, model=model, take_up=False))
        except BaseException:
            self._engine.close()
            raise

    def _open(self, command: p.Open) -> None:
        """Wait until the layer names are known; the model keeps loading in the background."""
        job = self._engine.start(command)
        while True:
            match self.receive():
                case p.LayersListed():
                    return
                case p.JobEnded(job=ended, status=status) as event if ended == job:
                    if status != "done":
                        raise JobError(event.message or "opening was cancelled", event.exit_code)
                    return

    # -- state ------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """Everything known about the checkpoint, folded from the engine's events."""
        return self._engine.session

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the model's order."""
        return list(self.session.layers.names)

    def __repr__(self) -> str:
        read = self.session.checkpoint
        about = "" if read is None else f", {read.architecture}, {read.parameters:,} parameters"
        return f"<qtui model {self.session.source}{about}, {len(self.layers)} layers>"

    # -- jobs -------------------------------------------------------------------------------------

    def triage(self, formats: Sequence[str] = ()) -> TriageResult:
        """Outliers, faults, and the weight error of every format, from the files alone.

        Args:
            formats: formats to quantise to; the profile's if empty.

        Raises:
            FormatError: a format does not parse.
        """
        return self._run(TriageResult(self, p.Triage(tuple(formats))))

    def sweep(
        self,
        formats: Sequence[str] = (),
        *,
        direction: p.Direction = "degrade",
        exact: str = "all",
        by: p.By = "layer",
    ) -> SweepResult:
        """The effect of every layer, quantised alone or kept alone.

        Args:
            formats: to measure; the profile's if empty.
            direction: ``degrade`` quantises one layer at a time, ``restore`` all but one.
            exact: ``all``, ``top:K`` or ``none``: which layers are measured once all are estimated.
            by: what is changed at once: ``layer``, ``block``, ``kind`` or ``group``.

        Raises:
            FormatError: a format does not parse.
            UsageError: ``exact``, ``direction`` or ``by`` has another value.
        """
        wanted = tuple(formats) or self.settings.sweep_formats
        command = p.Sweep(wanted, direction=direction, exact=exact, by=by)
        return self._run(SweepResult(self, command))

    def diagnose(
        self,
        format: str | None = None,
        *,
        fixes: int = 0,
        errors: bool = False,
        recipe: Recipe | None = None,
        to: str = "",
    ) -> DiagnoseResult:
        """Verdict, findings, formats that help, and errors inside the model.

        Args:
            format: whose damage is judged; the profile's if not given.
            fixes: on how many of the worst layers to try other formats.
            errors: whether to measure errors of outputs, drift and attention.
            recipe: whose errors; the format, of the whole body, if not given.
            to: export target that must hold the verdict's mix; some serving kernel if empty.

        Raises:
            FormatError: a format does not parse.
            UsageError: no such target, or the recipe cannot be read.
        """
        if to:
            target_named(to)
        asked = p.MeasureErrors() if errors or recipe is not None else None
        if asked is not None and recipe is not None:
            asked = self._of_recipe(asked, recipe, None)
        command = p.Diagnose(format or "", errors=asked, fixes=fixes)
        return self._run(DiagnoseResult(self, command, to=to))

    def evaluate(
        self,
        recipe: Recipe | None = None,
        *,
        format: str | None = None,
        texts: Sequence[str | Path] = (),
    ) -> EvaluationResult:
        """Perplexity and KL of a recipe, against the unchanged model.

        Args:
            recipe: the name of a built-in recipe, a recipe file, or formats by layer name.
            format: of the body layers that the recipe does not name.
            texts: other texts to score it on beside the model's evaluation text, each as a whole
                and by position in its windows: `document.texts`. The whole model must be in memory.

        Raises:
            UsageError: neither is given, or the recipe cannot be read.
            FormatError: a format does not parse.
        """
        name = _name(recipe, format)
        if texts:
            on = tuple(map(_absolute, texts))
            several = p.MeasureTexts(texts=on, format=format or "kept")
            several = self._of_recipe(several, recipe, format)
            return self._run(EvaluationResult(self, several, name=name))
        command = self._of_recipe(p.Evaluate(format=format or "kept"), recipe, format)
        return self._run(EvaluationResult(self, command, name=name))

    def compare(
        self, *finished: str | Path, score: bool = True, restore: int = 0
    ) -> ComparisonResult:
        """Finished quantised checkpoints of this model, against it.

        Args:
            finished: folders, GGUF files or hub ids.
            score: whether each is run on the evaluation windows; else weights are compared alone.
            restore: for how many layers of each, those that err most first, to measure what giving
                that layer back wins.
        """
        paths = tuple(str(each) for each in finished)
        return self._run(ComparisonResult(self, p.Compare(paths, score=score, restore=restore)))

    def calibrate(
        self,
        sets: Sequence[str | Path],
        *,
        method: str = "int4-g128+gptq",
        samples: Sequence[int] = (),
        seq_lens: Sequence[int] = (),
        texts: Sequence[str | Path] = (),
        measure: bool = True,
        halves: bool = True,
    ) -> CalibrationResult:
        """Calibration sets, by what a method makes of them on texts that none of them holds.

        Args:
            sets: names of sets, files, folders, datasets, ``random``, ``own`` or ``eval``.
            method: a format whose methods use calibration text, of every layer of the body.
            samples: windows of each set; a quarter, half and all of ``calib_tokens`` if empty.
            seq_lens: tokens of each window; the evaluation's if empty.
            texts: to judge the sets on; the model's evaluation text if empty.
            measure: False only checks the sets, and quantises nothing.
            halves: whether halves of each set are scored too.

        Raises:
            FormatError: the method does not parse.
            JobError: a set has no such name, or the method uses no calibration text.
        """
        command = p.Calibrate(
            sets=tuple(map(str, sets)),
            method=method,
            samples=tuple(samples),
            seq_lens=tuple(seq_lens),
            texts=tuple(map(str, texts)),
            measure=measure,
            halves=halves,
        )
        return self._run(CalibrationResult(self, command))

    def symptoms(
        self,
        recipe: Recipe | None = None,
        *,
        format: str | None = None,
        prompts: Sequence[str] = (),
        tasks: Sequence[str | Path] = (),
        sampling: p.Sampling | None = None,
    ) -> SymptomsResult:
        """What a recipe says and answers, beside the unchanged model.

        Args:
            recipe: see `evaluate`.
            format: see `evaluate`.
            prompts: continued by both.
            tasks: answered by both: files of JSON lines, and names of lm-eval's tasks.
            sampling: how prompts are continued; greedily for 64 tokens if not given.
        """
        command = p.FindSymptoms(
            prompts=tuple(prompts),
            tasks=tuple(_absolute(each) for each in tasks),
            sampling=sampling or p.Sampling(),
            format=format or "kept",
        )
        command = self._of_recipe(command, recipe, format)
        return self._run(SymptomsResult(self, command, name=_name(recipe, format)))

    def export(
        self,
        path: str | Path,
        recipe: Recipe | None = None,
        *,
        to: str = "checkpoint",
        format: str | None = None,
        overwrite: bool = False,
        check: bool = True,
        nearest: bool = False,
    ) -> ExportResult:
        """Write a recipe as a checkpoint that other programs can load, or in another tool's words.

        Args:
            path: the folder or file to write; it appears once it is complete.
            recipe: see `evaluate`.
            to: the export target.
            format: see `evaluate`.
            overwrite: whether what an earlier export wrote to ``path`` may be replaced.
            check: whether the program that it is for loads it before it counts as done.
            nearest: whether layers that the target cannot hold get the nearest format it can.

        Raises:
            UsageError: the target does not exist, or see `evaluate`.
            InfeasibleError: the target cannot hold some layers; each is named.
        """
        out = str(Path(path).expanduser().absolute())
        command = p.Export(
            out=out,
            format=format or "kept",
            to=to,
            overwrite=overwrite,
            check=check,
            nearest=nearest,
        )
        return self._run(ExportResult(self, self._of_recipe(command, recipe, format)))

    def _of_recipe(self, command: OfRecipe, recipe: Recipe | None, format: str | None) -> OfRecipe:
        if recipe is None:
            if format is None:
                raise UsageError("give a recipe, a format, or both")
            return command
        if isinstance(recipe, Mapping):
            return msgspec.structs.replace(command, layers=dict(recipe))
        if isinstance(recipe, str) and not names_file(recipe):
            return msgspec.structs.replace(command, recipe=built_in(recipe))
        if format is not None:
            raise UsageError("a recipe file sets its own default: leave format out")
        read = read_recipe(Path(recipe).expanduser())
        return msgspec.structs.replace(
            command, format=read.default, layers=read.resolve(self.session), recipe=read.recipe
        )

    # -- events ----------------------------------------------------------------------------------

    def _run(self, result: R) -> R:
        """Start a result's job.

        Raises:
            JobError: the command was refused.
        """
        with self._turn:
            self._running.append(result)
            result.started(self._engine.start(result.command) or "")
            if not result.job:
                self._refusal(result)
        return result

    def _refusal(self, result: Result[Any]) -> None:
        """Raise the engine's refusal of a command that started no job."""
        while not result.done:
            self.receive()
        result.wait()

    def receive(self) -> p.AnyEvent | None:
        """The next event, passed to every running result; None if none arrived soon."""
        with self._turn:
            event = self._engine.receive(WAIT)
            if event is not None:
                for result in list(self._running):
                    if result.take(event):
                        self._running.remove(result)
            return event

    def cancel(self, job: str) -> None:
        """Cancel a job; its results are saved."""
        with contextlib.suppress(EngineError):
            self._engine.send(p.Cancel(job))

    def close(self) -> None:
        """End every job and close the checkpoint; results are saved."""
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _name(recipe: Recipe | None, format: str | None) -> str:
    """How the user named a recipe."""
    given = "" if recipe is None else "layers" if isinstance(recipe, Mapping) else str(recipe)
    return " ".join(word for word in (given, format or "") if word)


def open_model(
    source: str, *, profile: str = DEFAULT_PROFILE, model: bool = True, **settings: Any
) -> Model:
    """See `engine.open`."""
    known = set(p.Settings.__struct_fields__) - {"profile"}
    if unknown := sorted(set(settings) - known):
        there = ", ".join(sorted(known))
        raise UsageError(f"unknown setting {unknown[0]!r}: the settings are {there}")
    # As on the command line: naming formats means only those.
    given = {"estimate_formats": (), **settings}
    chosen = load_profile(profile).settings(profile, **given)
    try:
        checked = msgspec.convert(msgspec.to_builtins(chosen), p.Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"settings: {error}") from error
    return Model(source, checked, model=model)


def _absolute(task: str | Path) -> str:
    """A file by its absolute path; a name as it is."""
    path = Path(task).expanduser()
    return str(path.resolve()) if path.exists() else str(task)
