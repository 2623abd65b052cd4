"""What can go wrong, as one family; every message names the thing at fault and what to do."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """The first line of a failure's message; the name of its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def few(names: Sequence[str]) -> str:
    """The first three of some names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


class EngineError(Exception):
    """A failure told to a person. ``exit_code`` is what a command line run ends with."""

    exit_code = 1


class UsageError(EngineError):
    """The request itself is wrong: an unknown format, layer, profile or option."""

    exit_code = 2


class FormatError(UsageError):
    """A format that does not parse, is not built yet, or cannot hold a layer."""


class ProfileError(UsageError):
    """A profile that cannot be read; the message names file and key."""


class UnreadableError(EngineError):
    """A checkpoint or a text that cannot be read."""

    exit_code = 3


class CheckpointError(UnreadableError):
    """A checkpoint that cannot be read; the message names file or tensor."""


class TextError(UnreadableError):
    """An evaluation text that cannot be read, or is too short."""


class OutOfMemoryError(EngineError):
    """More memory is needed than there is; the message names both and how to need less."""

    exit_code = 4


class InfeasibleError(EngineError):
    """A budget that cannot be met, or a target that cannot express the recipe."""

    exit_code = 5
