"""Work that takes longer than a key may wait, done some milliseconds at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SLICE, PAUSE = 0.008, 0.004
"""Seconds that steps may take at a time, and what is left for keys in between."""


class Sliced(Generic[T]):
    """Runs the steps of a generator in slices; what takes one slice only is done at once."""

    def __init__(self, later: Callable[[float, Callable[[], None]], Any]) -> None:
        """
        Args:
            later: calls a function after so many seconds.
        """
        self._later = later
        self._steps: Generator[Any, None, T] | None = None
        self._done: Callable[[T], None] = lambda found: None
        self.took = 0.0
        """Seconds that the last steps took, pauses left out."""

    @property
    def busy(self) -> bool:
        """Whether steps are left."""
        return self._steps is not None

    def begin(self, steps: Generator[Any, None, T], done: Callable[[T], None]) -> None:
        """Begin some steps in place of those that are left.

        Args:
            steps: a generator whose steps are short.
            done: receives what it returns.
        """
        idle = not self.busy
        self._steps, self._done, self.took = steps, done, 0.0
        if idle:
            self._go_on()

    def stop(self) -> None:
        """Leave the rest undone."""
        self._steps = None

    def _go_on(self) -> None:
        steps, begun = self._steps, time.perf_counter()
        if steps is None:
            return
        try:
            while time.perf_counter() - begun < SLICE:
                next(steps)
        except StopIteration as end:
            self.took += time.perf_counter() - begun
            self._steps = None
            self._done(end.value)
            return
        self.took += time.perf_counter() - begun
        self._later(PAUSE, self._go_on)
