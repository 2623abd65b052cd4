"""A job that is begun again after memory ran out, with less of it in use.

Results are facts, which are saved as they come: a job that begins again finds them. What it had in
memory is gone, so that nothing measured before is mixed with what is measured after.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from engine import protocol as p
from engine.errors import EngineError, is_out_of_memory
from engine.service.jobs import Context, JobSpec, OnLane, Steps


class Failure(NamedTuple):
    """An allocation that failed."""

    said: str
    """By whoever tried, in one line."""
    refused: EngineError | None = None
    """Our own error, if the need was known beforehand."""
    again: bool = False
    """Whether memory was given back to this job before."""


Relieve = Callable[[Failure], p.AnyEvent]
"""Gives memory back, and says what; raises if nothing is left to give."""


class Retried:
    """The steps of a job, as a generator has them.

    Args:
        make: begins the job.
        relieve: called when memory ran out, after everything the job held is free.
    """

    def __init__(self, make: Callable[[], Steps], relieve: Relieve) -> None:
        self._make, self._relieve = make, relieve
        self._steps: Steps | None = None
        self._relieved = False

    def __next__(self) -> p.AnyEvent | OnLane | None:
        if self._steps is None:
            self._steps = self._make()
        try:
            return next(self._steps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = Failure(" ".join(str(error).split())[:300], _ours(error), self._relieved)
            _let_go(error)
        self._steps, self._relieved = None, True
        return self._relieve(failure)

    def begin_again(self) -> None:
        """Free what the job holds; its next step is its first."""
        self.close()
        self._steps = None

    def close(self) -> None:
        """End the job."""
        if self._steps is not None:
            self._steps.close()


def with_need_said(
    spec: JobSpec[Any], context: Context[Any], command: p.Command
) -> Callable[[], Steps]:
    """Begins a job; the first time it says so before, if what it needs at least is not free."""
    begun: list[bool] = []

    def begin() -> Steps:
        if spec.memory is not None and not begun:
            begun.append(True)
            need = spec.memory(context, command)
            if need is not None and (said := need.lacking(spec.title(command))):
                yield p.Notice("warning", said)
        return (yield from spec.steps(context, command))

    return begin


def _ours(error: Exception) -> EngineError | None:
    return error if isinstance(error, EngineError) else None


def _let_go(error: BaseException | None) -> None:
    """Free the variables of all functions that an error went through: tensors, mostly."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
