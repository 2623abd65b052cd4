"""Progress of a whole comparison of sets: results that are there of all, and the time left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from engine import protocol as p
from engine.measure.counts import JobCounts, Stage


@dataclass
class Course(JobCounts):
    """Counts of a job that compares sets; every stage of it announces the whole job's progress.

    A result is one number of windows of a set, checked, and scored on all texts. A pass over
    windows takes as long as its tokens, and all results as long as those so far.
    """

    results: int = 0
    """Of the whole job."""
    tokens: int = 0
    """Of all windows that inputs of layers are still to be gathered on, and of those that were."""
    over: int = 0
    """Results that are there."""
    passed: int = 0
    """Tokens that inputs were gathered on."""
    at: str = ""
    """The set and its windows that are worked on."""
    _measured: int = 0
    """Results that this job computed itself."""
    _before: float = 0.0
    """Seconds beside gathering until the last of them."""

    def stage(self, phase: p.Phase, total: int, then: float = 0.0) -> Stage:
        """Begin a stage of the job."""
        return _StageOfCourse(self, phase, total, then)

    def known_result(self) -> None:
        """A result was found in the store."""
        self.over += 1

    def result(self) -> None:
        """A result was computed."""
        self.over += 1
        self._measured += 1
        self._before = self._beside()

    def of_whole(self, event: p.Progress) -> p.Progress:
        """Progress of a stage as that of the job."""
        said = " ".join(each for each in (self.at, event.phase) if each)
        return msgspec.structs.replace(
            event, done=self.over + self._part(), total=self.results, phase="", format="",
            subject=said, seconds_left=self._left(),
        )  # fmt: skip

    def _gathering(self) -> float:
        return self.timings.get("calibrate_s", 0.0)

    def _beside(self) -> float:
        return self.computed - self._gathering()

    def _each(self) -> float:
        """Seconds of one result beside gathering; nan before the first."""
        return self._before / self._measured if self._measured else math.nan

    def _part(self) -> float:
        """How much of the next result is done, as far as its time says."""
        each = self._each()
        return min(0.99, (self._beside() - self._before) / each) if each > 0 else 0.0

    def _left(self) -> float:
        if not self.passed:
            return math.nan
        gathering = max(0, self.tokens - self.passed) * self._gathering() / self.passed
        rest = self._each() * (self.results - self.over)
        return gathering + max(0.0, rest - (self._beside() - self._before))


class _StageOfCourse(Stage):
    def __init__(self, course: Course, phase: p.Phase, total: int, then: float) -> None:
        super().__init__(course, phase, total, then)
        self._course = course

    def step(
        self, done: int, subject: str = "", format: str = "", detail: str = ""
    ) -> p.Progress | None:
        event = super().step(done, subject, format, detail)
        return None if event is None else self._course.of_whole(event)
