"""One thread that steps the most urgent job.

A job is a generator of events. Between two of its yields a more urgent job may run; the results are
the same. The scheduler knows no job by name and no mathematics.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from engine import protocol as p
from engine.service.in_thread import AbandonedError
from engine.service.jobs import Lane, OnLane, Outcome

log = logging.getLogger(__name__)


_order = count()


class AnySteps(Protocol):
    """The steps of a job: a generator, or what begins one again."""

    def __next__(self) -> p.AnyEvent | OnLane | None:
        """Run to the next yield; its `Outcome` comes with `StopIteration`."""

    def close(self) -> None:
        """End it."""


@dataclass(eq=False)
class Job:
    """A generator with its place in the queue. Lower ``urgency`` runs first."""

    id: str
    kind: str
    urgency: int
    steps: AnySteps
    order: int = field(default_factory=lambda: next(_order))
    cancelled: bool = False


class Scheduler:
    """Steps jobs on a thread of its own: the most urgent first, then in order of arrival."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Job, p.AnyEvent], None],
        ended: Callable[[Job, Outcome | None, BaseException | None], None],
        at_rest: Callable[[], None] = lambda: None,
        move: Callable[[Job, Lane], None] = lambda job, lane: None,
    ) -> None:
        """
        Args:
            name: of the thread.
            deliver: receives each event, on the scheduler's thread.
            ended: receives the outcome, or the exception; both are None for a cancelled job.
            at_rest: called after each step; raises if the step left something open.
            move: receives a job that continues on another lane; it calls `release`.
        """
        self._deliver, self._ended, self._at_rest = deliver, ended, at_rest
        self._move = move
        self._jobs: list[Job] = []
        self._running: Job | None = None
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        with self._wake:
            self._jobs.append(job)
            self._wake.notify_all()

    def cancel(self, job_id: str) -> bool:
        """End a job at its next yield; False if no job has this id."""
        with self._wake:
            for job in self._jobs:
                if job.id == job_id:
                    job.cancelled = True
                    self._wake.notify_all()
                    return True
        return False

    def first(self, job_id: str) -> bool:
        """Run a job before all others of its urgency; False if no job here has this id."""
        with self._wake:
            for job in self._jobs:
                if job.id == job_id:
                    job.order = min(each.order for each in self._jobs) - 1
                    return True
        return False

    def release(self, job: Job) -> None:
        """Remove a job that continues in another scheduler."""
        with self._wake:
            self._jobs.remove(job)

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        return bool(self._jobs)

    def should_stop(self) -> bool:
        """The pre-emption flag: whether the running job should yield soon."""
        running = self._running
        if running is None:
            return False
        return (
            self._closing
            or running.cancelled
            or any(job.urgency < running.urgency for job in list(self._jobs))
        )

    def close(self, timeout: float | None = 30.0) -> None:
        """Close every generator and end the thread."""
        with self._wake:
            self._closing = True
            for job in self._jobs:
                job.cancelled = True
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _next(self) -> Job | None:
        with self._wake:
            while True:
                if self._jobs:
                    cancelled = [job for job in self._jobs if job.cancelled]
                    return min(cancelled or self._jobs, key=lambda job: (job.urgency, job.order))
                if self._closing:
                    return None
                self._wake.wait()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._running = job
            try:
                self._step(job)
            finally:
                self._running = None

    def _step(self, job: Job) -> None:
        try:
            if job.cancelled:
                job.steps.close()
                self._finish(job, None, None)
                return
            event = next(job.steps)
            self._at_rest()
            if isinstance(event, OnLane):
                if not job.cancelled:  # else it ends here: the other lane may be closed already
                    self._move(job, event.lane)
            elif event is not None:
                self._deliver(job, event)
        except StopIteration as stop:
            self._finish(job, stop.value, None)
        except AbandonedError:
            job.steps.close()
            self._finish(job, None, None)
        except BaseException as error:  # noqa: BLE001 - any failure of a job is announced
            job.steps.close()
            self._finish(job, None, error)

    def _finish(self, job: Job, outcome: Outcome | None, error: BaseException | None) -> None:
        with self._wake:
            self._jobs.remove(job)
        try:
            self._ended(job, outcome, error)
        except Exception:
            log.exception("announcing the end of job %s failed", job.id)
