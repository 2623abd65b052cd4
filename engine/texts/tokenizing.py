"""Texts as tokens, by a tokenizer that came with a checkpoint and may be slow on purpose.

A tokenizer splits a text by regular expressions of its own. They run in Rust, where they cannot be
stopped: one that tries every way to split a word gives up after ten million tries, with a panic,
and one that stays just below takes that long for each character. So short beginnings of a text are
tried first, and one that takes far longer than any real tokenizer ends it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import CheckpointError

FIRST, GROWTH = 32, 8
"""Characters of the first beginning, and by what it grows: trying takes a seventh of the whole."""
SECONDS, SECONDS_PER_CHARACTER = 1.0, 1e-3
"""What a beginning may take; the slowest real tokenizers take a twentieth of that."""
SILENT = 4096
"""Characters of the beginnings whose panics are kept off the terminal."""


def token_ids(tokenizer: Any, content: str, *, special_tokens: bool) -> list[int]:
    """The ids of a text whose beginnings are tried first.

    Args:
        tokenizer: of transformers.
        content: the text.
        special_tokens: whether the tokenizer adds its own, such as BOS.

    Raises:
        CheckpointError: the tokenizer fails, or takes far too long.
    """
    length = FIRST
    while length < len(content):
        _tried(tokenizer, content[:length], special_tokens)
        length *= GROWTH
    return encoded(tokenizer, content, special_tokens)


def _tried(tokenizer: Any, text: str, special_tokens: bool) -> None:
    begun = time.thread_time()
    if len(text) <= SILENT:
        with _without_stderr():
            encoded(tokenizer, text, special_tokens)
    else:
        encoded(tokenizer, text, special_tokens)
    taken, allowed = time.thread_time() - begun, SECONDS + SECONDS_PER_CHARACTER * len(text)
    if taken > allowed:
        raise CheckpointError(
            f"the tokenizer in {tokenizer.name_or_path} takes {taken:.1f} s of processor time for "
            f"{len(text)} characters, far too long: its patterns or merges are broken"
        )


def encoded(tokenizer: Any, text: str, special_tokens: bool) -> list[int]:
    """The ids of a text, by a tokenizer that was tried before.

    Raises:
        CheckpointError: the tokenizer fails.
    """
    try:
        found: list[int] = tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"the tokenizer in {tokenizer.name_or_path} cannot split a text, or not in any "
            f"reasonable time: {why}"
        ) from error
    return found


def _is_panic(error: BaseException) -> bool:
    """Whether the Rust code of a tokenizer gave up, which in Python is no `Exception`."""
    return type(error).__name__ == "PanicException"


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Inside, what Rust says of a panic is lost; a few milliseconds."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no stderr
        yield
        return
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
