"""Counts of a job: facts measured and found in the store, seconds by activity, steps of a stage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from engine import protocol as p
from engine.service.jobs import Outcome

T = TypeVar("T")

FACTS_IN_ONE_EVENT = 500
BETWEEN = 0.1
"""Seconds between two events about the same stage, at least."""


@dataclass
class JobCounts:
    """Facts that one job measured and found, and its seconds."""

    measured: int = 0
    known: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    job: str = ""
    """The job's id, for `Progress`; without one, none is announced."""

    forward: float = math.nan
    """Seconds of the reference on all micro-batches, once a stage of the job has run it."""

    @property
    def computed(self) -> float:
        """Seconds of all timed steps: what the job computed itself, not what it waited for."""
        return math.fsum(spent for name, spent in self.timings.items() if name != "load_s")

    def stage(self, phase: p.Phase, total: int, then: float = 0.0) -> Stage:
        """Begin a stage of ``total`` steps; see `Stage`."""
        return Stage(self, phase, total, then)

    def timed(self, name: str, step: Callable[[], T]) -> Callable[[], T]:
        """Wrap a step to add its seconds under ``name``, even if it is abandoned."""

        def run() -> T:
            begun = time.perf_counter()
            try:
                return step()
            finally:
                spent = time.perf_counter() - begun
                self.timings[name] = self.timings.get(name, 0.0) + spent

        return run

    def learnt(self, key: str, fact: p.AnyFact) -> p.Learned:
        """Announce a fact that was just measured."""
        self.measured += 1
        return p.Learned((key,), (fact,))

    def found(self, keys: Sequence[str], facts: Sequence[p.AnyFact]) -> Iterator[p.Learned]:
        """Announce facts that the store had."""
        self.known += len(keys)
        for at in range(0, len(keys), FACTS_IN_ONE_EVENT):
            end = at + FACTS_IN_ONE_EVENT
            yield p.Learned(tuple(keys[at:end]), tuple(facts[at:end]), fresh=False)

    def outcome(self) -> Outcome:
        """What the job returns."""
        return Outcome(self.measured, self.known, dict(self.timings))


class Stage:
    """Progress of one stage of a job; its time left follows from the steps so far."""

    def __init__(self, counts: JobCounts, phase: p.Phase, total: int, then: float = 0.0) -> None:
        """
        Args:
            counts: of the job; the seconds of its timed steps say how long a step takes.
            phase: the stage.
            total: number of its steps.
            then: what follows the stage, in steps of it, for the time left.
        """
        self._counts, self._phase, self._total, self._then = counts, phase, total, then
        self._begun = counts.computed
        self._told = -math.inf

    @property
    def spent(self) -> float:
        """Seconds that its steps took so far."""
        return self._counts.computed - self._begun

    def step(
        self, done: int, subject: str = "", format: str = "", detail: str = ""
    ) -> p.Progress | None:
        """Announce a step: ``done`` are over, and ``subject`` comes next.

        Returns:
            None without a job, or if another step was announced a moment before.
        """
        now = time.monotonic()
        if not self._counts.job or (now - self._told < BETWEEN and done < self._total):
            return None
        self._told = now
        left = self._total - done + self._then
        return p.Progress(
            job=self._counts.job, done=done, total=self._total, phase=self._phase,
            seconds_left=self.spent / done * left if done else math.nan,
            subject=subject, format=format, detail=detail,
        )  # fmt: skip
