"""Units measured on all windows, one after the other: by the engine, or for it by a worker."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from engine import protocol as p
from engine.errors import UsageError
from engine.formats.grammar import parse_built
from engine.measure.calibration.calibration import calibration_key
from engine.measure.counts import JobCounts
from engine.measure.evaluation.evaluate import not_finite
from engine.measure.sweep.agreement import AgreementTracker
from engine.measure.sweep.candidates import Candidate, CandidateMeasurement, SweepTable
from engine.measure.sweep.progress import SweepProgress
from engine.measure.sweep.stored import from_store
from engine.service.jobs import Steps
from engine.workspace import Loaded

Found = Generator[p.AnyEvent | None, None, None]


def measure_all(
    table: SweepTable,
    candidates: Sequence[Candidate],
    measuring: CandidateMeasurement,
    counts: JobCounts,
    progress: SweepProgress,
    comparing: AgreementTracker,
) -> Found:
    """Measure candidates on all windows, one after the other."""
    for group in measuring.groups(candidates):
        for candidate in group:
            progress.advance(
                candidate.unit, len(candidate.tallies) / measuring.micro_batches, known=True
            )
            yield progress.event(candidate.unit, str(table.format))
        for due in measuring.turns(group, measuring.micro_batches):
            yield from measuring.measure(due, keep=True)
            for candidate in due:
                progress.advance(candidate.unit, 1 / measuring.micro_batches)
                yield progress.event(candidate.unit, str(table.format))
        for candidate in group:
            fact = table.found[candidate.unit.name] = measuring.figure(candidate)
            measuring.drop(candidate)
            progress.finish(candidate.unit)
            yield from said_if_not_finite(measuring.loaded, fact)
            yield counts.learnt(candidate.key, fact)
            yield from comparing.growing(str(table.format), table.found)


def said_if_not_finite(loaded: Loaded, fact: p.Sensitivity) -> Iterator[p.Notice]:
    if not (math.isfinite(fact.kl) and math.isfinite(fact.dnll)):
        yield not_finite(loaded, f"{fact.layer} in {fact.format}")


@dataclass(eq=False)
class _Table:
    """A sweep's table at a worker, kept from one command to the next."""

    table: SweepTable
    candidates: dict[str, Candidate]
    """By unit name."""
    measuring: CandidateMeasurement


class _Tables(dict[tuple[str, p.Direction, p.By], _Table]):
    """The table that was last asked for; cached with the model."""


def measure_units(loaded: Loaded, command: p.MeasureUnits, job: str) -> Steps:
    """Measure some units of a sweep, which an engine has given to this worker.

    Yields:
        `Learned` with `Sensitivity` facts, and `Progress`.

    Raises:
        UsageError: the model has no such unit, or it cannot hold the format.
    """
    counts = JobCounts(job=job)
    tables = loaded.part(_Tables, _Tables)
    at = (command.format, command.direction, command.by)
    if at not in tables:
        tables.clear()
        tables[at] = yield from _table(loaded, command, counts)
    of, candidates = tables[at], []
    of.measuring.counts = counts
    for name in command.units:
        if name not in of.candidates:
            raise UsageError(f"the model has no {command.by} {name!r} to hold {command.format}")
        candidates.append(of.candidates[name])
    progress = SweepProgress(
        counts, loaded.network, [each.unit for each in candidates], len(candidates)
    )
    comparing = AgreementTracker(command.direction, {})
    yield from measure_all(of.table, candidates, of.measuring, counts, progress, comparing)
    return counts.outcome()


def _table(
    loaded: Loaded, command: p.MeasureUnits, counts: JobCounts
) -> Generator[p.AnyEvent | None, None, _Table]:
    table = SweepTable(parse_built(command.format), command.direction, command.by)
    table.calibration = yield from calibration_key(loaded, [table.format], "reference")
    for _ in from_store(loaded, table, "", counts):
        pass  # the engine has said what cannot be measured
    candidates = {each.unit.name: each for each in table.todo}
    measuring = CandidateMeasurement(loaded, table, command.nll, counts)
    return _Table(table, candidates, measuring)
