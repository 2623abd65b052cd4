"""A step that something more urgent may interrupt, repeated until it is done."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from engine.model.network import Preempted

T = TypeVar("T")


def again(step: Callable[[], T]) -> Generator[None, None, T]:
    """Run a step, and again after a yield whenever something more urgent made it stop.

    Use as ``value = yield from again(lambda: ...)`` inside a job.
    """
    while True:
        try:
            return step()
        except Preempted:
            yield None
