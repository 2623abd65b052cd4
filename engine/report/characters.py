"""Text for a terminal: control characters escaped, and the number of cells it takes."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_JOINING = (
    ("\u1160", "\u11ff"), ("\u3164", "\u3164"), ("\ud7b0", "\ud7ff"), ("\uffa0", "\uffa0"),
    ("\U0001f3fb", "\U0001f3ff"),
)  # fmt: skip
"""Hangul vowels and finals, and skin tones: drawn in the cells of the character before them."""
_WIDE_SINCE_16 = (
    ("\u2630", "\u2637"), ("\u268a", "\u268f"), ("\u4dc0", "\u4dff"),
    ("\U0001d300", "\U0001d356"), ("\U0001d360", "\U0001d376"),
)  # fmt: skip
"""Characters that Unicode 16 made wide; Python's tables may be older, terminals are not."""


@lru_cache(maxsize=8192)
def printable(text: str) -> str:
    """Escape everything in a text from a checkpoint that could control a terminal.

    Control characters, line and paragraph separators, marks that reverse the writing direction,
    lone surrogates and unassigned code points become ``\\x1b`` and the like; so do combining marks
    that would pile up on the character before them. Markup is not escaped: nothing drawn here is
    parsed as markup.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if unicodedata.category(char)[0] not in "CM"
        and unicodedata.category(char) not in ("Zl", "Zp")
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def cell_width(text: str) -> int:
    """Cells that printable text takes in a terminal.

    East Asian wide characters take two (UAX #11); Hangul vowels and finals join the consonant
    before them and take none.
    """
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def padded(text: str, width: int, *, left: bool = True) -> str:
    """Text padded with blanks to ``width`` cells, aligned left or right."""
    blanks = " " * (width - cell_width(text))
    return text + blanks if left else blanks + text


@lru_cache(maxsize=8192)
def _character_width(char: str) -> int:
    if _within(char, _JOINING):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" or _within(char, _WIDE_SINCE_16) else 1


def _within(char: str, ranges: tuple[tuple[str, str], ...]) -> bool:
    return any(first <= char <= last for first, last in ranges)
