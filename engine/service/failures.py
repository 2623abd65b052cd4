"""A failure as the sentence and exit code that a client receives."""

from __future__ import annotations

import msgspec

from engine.errors import EngineError, is_out_of_memory


def describe(error: BaseException) -> tuple[str, int]:
    """A failure as a sentence and an exit code."""
    if isinstance(error, EngineError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        return out_of_memory(str(error)), 4
    if isinstance(error, msgspec.ValidationError):
        return f"stored results cannot be read: {error}", 1
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__, 1


def out_of_memory(said: str) -> str:
    """What is said of memory that ran out, where nothing could be given back."""
    return (
        f"out of memory ({' '.join(said.split())[:200]}): lower batch_tokens, "
        "--memory-budget or --tokens, or use --dtype bf16"
    )
