"""Completions of an input line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Completion(NamedTuple):
    """One completion."""

    text: str
    """The whole new value of the line."""
    says: str = ""
    """What it means, in a few words."""
    dim: bool = False
    """Shown, but not what most people want: it is never taken without being chosen."""


def no_completions(value: str) -> Sequence[Completion]:
    """For a line that nothing is known about."""
    return ()
