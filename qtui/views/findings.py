"""Findings as lines: a sentence that wraps, and the format that helps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from textwrap import wrap

from rich.cells import cell_len

from engine.diagnosis.finding import Finding
from engine.report.wording import bits_more
from engine.session import Session
from qtui.views.text import Glyphs, Words, printable, short_name

STYLES = {"alert": "bold $error", "warning": "$finding"}
"""By severity; all others are dim."""

KEPT = 512
"""Findings whose lines are kept."""


def severity_mark(severity: str, glyphs: Glyphs) -> str:
    """What is before a finding of a severity, since not every terminal has colours."""
    return {"alert": glyphs.refused, "warning": glyphs.finding}.get(severity, " ")


class FindingLines:
    """The part of a list of findings that is visible; no other is laid out."""

    def __init__(self, glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        self._top = 0
        self._lines = lru_cache(KEPT)(self._of)

    def draw(
        self, found: Sequence[Finding], session: Session, width: int, room: int, on: int | None
    ) -> list[Words]:
        """The lines that are visible, the finding under the cursor whole among them.

        Args:
            found: all findings.
            session: whose they are.
            width: cells there are.
            room: lines there are.
            on: number of the finding under the cursor; None where that is elsewhere.
        """

        def of(number: int) -> tuple[Words, ...]:
            return self._in(found[number], session, width)

        at = on if on is not None else min(self._top, len(found) - 1)
        self._top = max(0, min(self._top, at))
        while self._top < at and sum(len(of(n)) for n in range(self._top, at + 1)) > room:
            self._top += 1
        lines: list[Words] = []
        number = self._top
        while number < len(found) and len(lines) < room:
            first, *rest = of(number)
            cursor = self.glyphs.cursor if number == on else " "
            lines += [[(f"{cursor} ", "$primary"), *first], *rest]
            number += 1
        return lines[:room]

    def count(self, found: Sequence[Finding], session: Session, width: int, most: int) -> int:
        """Lines of all findings; ``most`` where they are as many or more."""
        lines = 0
        for each in found:
            lines += len(self._in(each, session, width))
            if lines >= most:
                return most
        return lines

    def _in(self, finding: Finding, session: Session, width: int) -> tuple[Words, ...]:
        layer = finding.layer
        block = session.layers.blocks[session.index[layer]] if layer else -1
        return self._lines(_Same(finding), block, width)

    def _of(self, same: _Same, block: int, width: int) -> tuple[Words, ...]:
        """The lines of a finding; the first without its cursor."""
        finding = same.finding
        where = ""
        if finding.layer:
            where = printable(short_name(finding.layer, block, 2)).strip() + ": "
        tone = STYLES.get(finding.severity, "$dim")
        said = plain(finding.sentence, self.glyphs)
        mark = severity_mark(finding.severity, self.glyphs) + " "
        first, *rest = wrap(said, max(20, width) - 4, initial_indent=" " * cell_len(where))
        lines: list[Words] = [[(mark, tone), (where, "bold"), (first.lstrip(), tone)]]
        lines += [[("      ", ""), (line, tone)] for line in rest]
        if (fix := finding.fix) is not None:
            held = printable(fix.format) or "as stored it"
            mark = "" if fix.measured else self.glyphs.about
            said = f"{held} wins back {mark}{fix.recovered:.0%} {bits_more(fix.bits)}"
            lines.append([("      ", ""), (self.glyphs.arrow + " " + said, "$better")])
        return tuple(lines)


class _Same:
    """A finding as a key: itself, not its figures."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.finding is self.finding

    def __hash__(self) -> int:
        return id(self.finding)


PLAIN_SIGNS = {
    "σ": " sd", "×": "x", "…": "..", "≈": "~", "±": "+-", "·10³": "*1e3", "Δ": "d", "→": "->",
    "–": "-", "−": "-",
}  # fmt: skip
"""Signs of sentences and figures in ASCII."""


def plain(sentence: str, glyphs: Glyphs) -> str:
    """A sentence in the characters that may be drawn."""
    said = printable(sentence)
    if not glyphs.ascii:
        return said
    for sign, plain in PLAIN_SIGNS.items():
        said = said.replace(sign, plain)
    return said
