"""A failure of a job or a command, in the words and the exit code that a client is given."""

from __future__ import annotations

import msgspec

from engine.errors import EngineError


def describe(error: BaseException) -> tuple[str, int]:
    """A failure as a sentence and an exit code."""
    if isinstance(error, EngineError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"memory ran out ({' '.join(str(error).split())[:200]}): lower batch_tokens, "
            "--memory-budget or --tokens, or choose --dtype bf16",
            4,
        )
    if isinstance(error, msgspec.ValidationError):
        return f"what the store holds cannot be read: {error}", 1
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__, 1
