"""A failure as the sentence and exit code that a client receives."""

from __future__ import annotations

import msgspec

from engine.errors import EngineError


def describe(error: BaseException) -> tuple[str, int]:
    """A failure as a sentence and an exit code."""
    if isinstance(error, EngineError):
        return str(error), error.exit_code
    if _out_of_memory(error):
        return (
            f"out of memory ({' '.join(str(error).split())[:200]}): lower batch_tokens, "
            "--memory-budget or --tokens, or use --dtype bf16",
            4,
        )
    if isinstance(error, msgspec.ValidationError):
        return f"stored results cannot be read: {error}", 1
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__, 1


def _out_of_memory(error: BaseException) -> bool:
    """Of main memory or a GPU's, by whoever noticed: torch, its processor's allocator, cuBLAS."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("can't allocate memory", "CUDA out of memory", "ALLOC_FAILED")
    )
