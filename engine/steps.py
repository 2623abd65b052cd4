"""Work in short steps, done at once where nothing else waits."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")

ROWS = 5_000
"""Layers that are looked at in a step of some milliseconds."""


def drained(steps: Generator[Any, None, T]) -> T:
    """What a generator returns, once all its steps are done; what it yields is dropped."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
