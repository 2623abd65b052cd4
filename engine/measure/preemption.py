"""Repeats a step that a more urgent job interrupted, until it is done."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from engine.model.network import Preempted

T = TypeVar("T")


def repeated(step: Callable[[], T]) -> Generator[None, None, T]:
    """Run a step, and repeat it after a yield each time a more urgent job preempts it.

    Use as ``value = yield from repeated(lambda: ...)`` inside a job.
    """
    while True:
        try:
            return step()
        except Preempted:
            yield None
