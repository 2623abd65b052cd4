"""Units measured by an engine and its workers, which all take from one queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine import protocol as p
from engine.measure.counts import JobCounts
from engine.measure.sweep.agreement import AgreementTracker
from engine.measure.sweep.candidates import Candidate, CandidateMeasurement, SweepTable
from engine.measure.sweep.measured import Found, measure_all
from engine.measure.sweep.progress import SweepProgress
from engine.workers.crew import WAIT, Crew

AT_ONCE = 16
"""Units that a worker takes together at most: small ones take less time than handing them out."""


@dataclass(eq=False)
class SharedTable:
    """The candidates of one table, of which each is measured by whoever takes it."""

    table: SweepTable
    crew: Crew
    measuring: CandidateMeasurement
    counts: JobCounts
    progress: SweepProgress
    comparing: AgreementTracker
    nll: float
    """Of the unchanged model."""

    def measure(self) -> Found:
        """Measure every candidate on all windows; those to be seen first are taken first."""
        todo = {each.key: each for each in self.table.todo}
        titles = {key: f"{each.unit.name} {self.table.format}" for key, each in todo.items()}
        at_once = self.measuring.lanes if self.measuring.loaded.network.streamed else AT_ONCE

        def command(keys: Sequence[str]) -> p.MeasureUnits:
            return p.MeasureUnits(
                format=str(self.table.format),
                direction=self.table.direction,
                by=self.table.by,
                units=tuple(todo[key].unit.name for key in keys),
                nll=self.nll,
            )

        self.crew.begin(titles, command, at_once=at_once)
        while self.crew.left:
            mine = self.crew.take()
            if not mine:
                yield from self._take_in(todo, WAIT)
                yield None
                continue
            for event in self._measure_own([todo[key] for key in mine]):
                yield event
                yield from self._take_in(todo)
            self.crew.finish(mine)
        yield from self._take_in(todo)

    def _measure_own(self, candidates: Sequence[Candidate]) -> Found:
        return measure_all(
            self.table, candidates, self.measuring, self.counts, self.progress, self.comparing
        )

    def _take_in(self, todo: dict[str, Candidate], seconds: float = 0.0) -> Iterator[p.AnyEvent]:
        """What workers have found since the last time."""
        keys: list[str] = []
        found: list[p.AnyFact] = []
        for news in self.crew.news(seconds):
            event = news.event
            if isinstance(event, p.Notice):
                yield event
            elif isinstance(event, p.Learned):
                for key, fact in zip(event.keys, event.facts, strict=True):
                    unit = todo[key].unit
                    if unit.name in self.table.found or not isinstance(fact, p.Sensitivity):
                        continue
                    self.table.found[unit.name] = fact
                    self.progress.finish(unit)
                    keys.append(key)
                    found.append(fact)
        self.progress.hands = self.crew.measuring
        if found:
            self.counts.measured += len(found)
            yield p.Learned(tuple(keys), tuple(found))
            yield from self.comparing.growing(str(self.table.format), self.table.found)
        yield from self.crew.told(self.counts.job)
