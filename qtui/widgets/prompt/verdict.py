"""What a typed value means, or what is wrong with it, shown below the input."""

from __future__ import annotations

from typing import NamedTuple

from qtui.views.text import printable
from qtui.widgets.line import Lines, Words


class Verdict(NamedTuple):
    """What a value means, or what is wrong with it."""

    ok: bool
    says: str = ""
    hint: str = ""
    """For an unfinished value: what may follow, shown until it is submitted."""


def any_value(value: str) -> Verdict:
    """Every value will do."""
    return Verdict(True)


class Judgement(Lines):
    """A verdict in as many lines as it needs, three at most."""

    DEFAULT_CSS = """
    Judgement { height: auto; max-height: 3; padding: 0 1; background: $surface; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, wrap=True)

    def show(self, verdict: Verdict, *, loud: bool = False) -> None:
        """Show what a value means, or what is wrong with it; ``loud`` where that stops it."""
        hinted = bool(verdict.hint) and not verdict.ok and not loud
        text = printable(" ".join((verdict.hint if hinted else verdict.says).split()))
        if verdict.ok or hinted:
            words: Words = [(text, "$dim")]
        else:
            style = "bold $error" if loud else "$warning"
            words = [("x " if loud else "! ", style), (text, style)]
        self.set_lines([words])
