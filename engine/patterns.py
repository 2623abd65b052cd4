"""Regular expressions that somebody else wrote: in a checkpoint, a recipe file, a request.

One such as ``(a+)+$`` takes longer than anyone waits for, and Python's ``re`` cannot be stopped.
These are matched by the package ``regex``, which is a dependency of transformers, reads what ``re``
reads, and gives up after a time. RE2 needs no time limit, but knows neither lookahead nor
backreferences, which patterns in real checkpoints use.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, UsageError

if TYPE_CHECKING:
    import regex

SECONDS = 0.5
"""Processor time that one pattern may take, on all names that it is tried on together."""
FREE = 5e-5
"""Processor time on one name that does not count, ten times what real patterns take: a model has
tens of thousands of names, on which little more adds up to seconds."""
LONGEST = 10_000
"""Characters of a pattern, at most."""
MOST_REPEATS = 100_000
"""The product of a pattern's counted repeats, at most: they are written out as it is compiled."""
PREFIX = "re:"
"""How a name begins that is a pattern."""


class Pattern:
    """A compiled pattern, with the time that it may still take."""

    def __init__(
        self,
        text: str,
        where: str = "",
        error: type[EngineError] = UsageError,
        seconds: float = SECONDS,
    ) -> None:
        """
        Args:
            text: the regular expression.
            where: it stands, such as a file and a key; for messages.
            error: that is raised.
            seconds: of processor time that it may take.

        Raises:
            EngineError: of type ``error``; it is no regular expression, or far too long.
        """
        self.text, self._where, self._error, self._left = text, where, error, seconds
        if len(text) > LONGEST:
            raise self._failed(f"is a pattern of {len(text)} characters, {LONGEST} at most")
        if _repeats(text) > MOST_REPEATS:
            raise self._failed("repeats itself too often: write it simpler")
        import regex

        try:
            self._compiled: regex.Pattern[str] = regex.compile(text)
        except (regex.error, OverflowError, RecursionError, ValueError) as cause:
            raise self._failed(f"is no regular expression: {cause}") from cause

    def match(self, name: str) -> bool:
        """Whether it matches from the beginning of a name, as ``re.match``."""
        return self._tried(self._compiled.match, name) is not None

    def search(self, name: str) -> bool:
        """Whether it matches anywhere in a name."""
        return self._tried(self._compiled.search, name) is not None

    def fullmatch(self, name: str) -> bool:
        """Whether it matches a name as a whole."""
        return self._tried(self._compiled.fullmatch, name) is not None

    def try_on(self, text: str) -> None:
        """Find it everywhere in a text, as a tokenizer does.

        Raises:
            EngineError: it takes too long.
        """

        def every(text: str, **limit: Any) -> None:
            for _ in self._compiled.finditer(text, **limit):
                pass

        self._tried(every, text)

    def _tried(self, find: Callable[..., Any], text: str) -> Any:
        begun = time.thread_time()
        try:
            # It counts the processor time of the whole process.
            found = find(text, timeout=max(self._left, 1e-3))
        except TimeoutError:
            found, self._left = None, 0.0
        else:
            self._left -= max(0.0, time.thread_time() - begun - FREE)
        if self._left <= 0:
            raise self._failed(
                "takes too long to match, as patterns do that repeat a repetition: write it simpler"
            )
        return found

    def _failed(self, what: str) -> EngineError:
        shown = self.text if len(self.text) < 100 else f"{self.text[:100]}…"
        return self._error(f"{self._where}{': ' if self._where else ''}{shown!r} {what}")


_REPEAT = re.compile(r"\{([0-9]*)(?:,([0-9]*))?\}")


def _repeats(text: str) -> int:
    """The product of all counted repeats; more than the most once it is beyond that."""
    found = 1
    for counts in _REPEAT.findall(text.replace(" ", "")):  # which may stand in the braces
        found *= max([1, *(int(count[:10]) for count in counts if count)])
        if found > MOST_REPEATS:
            break
    return found


def pattern_of(name: str, where: str = "", error: type[EngineError] = UsageError) -> Pattern | None:
    """The pattern behind ``re:``; None if a name is just that.

    Raises:
        EngineError: see `Pattern`.
    """
    return Pattern(name.removeprefix(PREFIX), where, error) if name.startswith(PREFIX) else None
