"""Threads that pass over weights, one span of rows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from engine.measure.weights.fused import Pass
from engine.measure.weights.sums import Beyond, Sums

T = TypeVar("T")

PATIENCE = 0.05
"""Seconds to wait for a thread before a more urgent job may step in."""

Steps: TypeAlias = Generator[None, None, T]


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(eq=False)
class Running:
    """One pass, whose spans are measured or wait for a thread."""

    work: Pass
    sigma: float
    _pool: ThreadPoolExecutor
    _spans: list[Future[Sums]] = field(default_factory=list)
    _found: tuple[Sums, Beyond | None] | None = None

    def __post_init__(self) -> None:
        self._spans = [self._pool.submit(self.work.over, *span) for span in self.work.spans]

    @property
    def waiting(self) -> int:
        """Spans that are not measured yet."""
        return sum(not span.done() for span in self._spans)

    def result(self) -> Steps[tuple[Sums, Beyond | None]]:
        """Sums over all rows, and the entries beyond ``sigma`` if there are any.

        Yields None while it waits.

        Raises:
            CheckpointError: rows cannot be read.
        """
        if self._found is None:
            sums = Sums(self.work.rows.width, len(self.work.formats), self.work.shift)
            for part in (yield from _done(self._spans)):
                sums.join(part)
            self._spans = []
            self._found = sums, (yield from self._beyond(sums))
        return self._found

    def _beyond(self, sums: Sums) -> Steps[Beyond | None]:
        """A second look at the rows that have outliers: only now is it known what they are."""
        limit = self.sigma * sums.std
        if not limit > 0:
            return None
        reach = sums.reach(limit)
        if not reach.any():
            return None
        parts = [
            self._pool.submit(self.work.beyond, first, count, here, sums.mean, limit)
            for first, count in self.work.spans
            if (here := reach[first : first + count]).any()
        ]
        found = sums.inside(reach)
        for part in (yield from _done(parts)):
            found = found.join(part)
        return found


def _done(futures: Sequence[Future[T]]) -> Steps[list[T]]:
    found = []
    for future in futures:
        while not wait([future], PATIENCE).done:
            yield None
        found.append(future.result())
    return found


class Passes:
    """A pool of threads for the passes of one job, taken in the order in which they begin."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "triage")
        self._running: list[Running] = []

    def close(self) -> None:
        """Drop what is queued, and wait for the spans that are being measured."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, work: Pass, sigma: float) -> Running:
        """Queue a pass; nothing waits for its end."""
        work.announce()
        running = Running(work, sigma, self._pool)
        self._running.append(running)
        return running

    def fill(self, begin_next: Callable[[], bool]) -> None:
        """Begin passes, until every thread has work for a while or there are none left.

        Args:
            begin_next: begins one, and returns whether there may be more.
        """
        self._running = [each for each in self._running if each.waiting]
        while sum(each.waiting for each in self._running) <= 3 * self.threads and begin_next():
            pass
