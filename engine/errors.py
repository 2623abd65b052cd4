"""One family of errors; every message names what is at fault and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def few(names: Sequence[str]) -> str:
    """The first three of some names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


class EngineError(Exception):
    """An error shown to the user. ``exit_code`` is the exit status of the command line."""

    exit_code = 1


class UsageError(EngineError):
    """The request is wrong: an unknown format, layer, profile or option."""

    exit_code = 2


class FormatError(UsageError):
    """A format does not parse, is not implemented yet, or cannot hold a layer."""


class ProfileError(UsageError):
    """A profile cannot be read; the message names file and key."""


class UnreadableError(EngineError):
    """A checkpoint or a text cannot be read."""

    exit_code = 3


class CheckpointError(UnreadableError):
    """A checkpoint cannot be read; the message names the file or tensor."""


class TextError(UnreadableError):
    """An evaluation text cannot be read, or is too short."""


class OutOfMemoryError(EngineError):
    """Not enough memory; the message names what is needed, what is free, and how to need less."""

    exit_code = 4


class InfeasibleError(EngineError):
    """A budget cannot be met, or a target cannot express the recipe."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether main memory or a GPU's ran out, by whoever noticed: torch, its processor's allocator,
    cuBLAS, or we ourselves beforehand."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("can't allocate memory", "CUDA out of memory", "ALLOC_FAILED")
    )
