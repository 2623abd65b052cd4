"""Counts of a job: facts measured, facts found in the store, and seconds by activity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from engine import protocol as p
from engine.service.jobs import Outcome

T = TypeVar("T")

FACTS_IN_ONE_EVENT = 500


@dataclass
class JobCounts:
    """Facts that one job measured and found, and its seconds."""

    measured: int = 0
    known: int = 0
    timings: dict[str, float] = field(default_factory=dict)

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
