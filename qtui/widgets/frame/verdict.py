"""The verdict in a line: what a uniform format costs, and the cheapest mix that helps."""

from __future__ import annotations

import time

from rich.cells import cell_len

from engine.diagnosis.verdict import Verdict, verdict
from engine.report.verdicts import costs, in_short, remedy
from engine.session import Session
from qtui.views.text import UNICODE, Glyphs
from qtui.widgets.line import Lines, Words

REST = 20.0
"""How many times longer than a verdict took there is none again: most of the time is for keys."""
LEAST = 0.5
"""Seconds between two verdicts, at least."""


NONE_YET = "no verdict before all layers are estimated"


class VerdictLine(Lines):
    """One line, which is there from the start: nothing below it moves when there is a verdict."""

    DEFAULT_CSS = """
    VerdictLine { height: 1; padding: 0 1; }
    """

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.found: Verdict | None = None
        """The verdict that is shown."""
        self.take_key = "V"
        """The key that takes its mix."""
        self._session, self._format = Session(), ""
        self._next = 0.0
        self._waits = False

    def follow(self, session: Session, format: str) -> None:
        """Judge a session that changed: at once, or once the last verdict is old enough."""
        self._session, self._format = session, format
        left = self._next - time.monotonic()
        if left <= 0:
            self._judge()
        elif not self._waits:
            self._waits = True
            self.set_timer(left, self._judge)

    def _judge(self) -> None:
        self._waits = False
        begun = time.monotonic()
        found = verdict(self._session, self._format) if self._format else None
        took = time.monotonic() - begun
        self._next = begun + max(LEAST, REST * took)
        self.found = found
        self.draw()

    def draw(self) -> None:
        """Draw the verdict for the width there is."""
        if self.found is None:
            self.set_lines([[(NONE_YET, "$dim")]])
            return
        width = self.content_size.width or self.app.size.width - 2
        self.set_lines([self._words(self.found, width)])

    def on_resize(self) -> None:
        """Another width."""
        self.draw()

    def _words(self, found: Verdict, width: int) -> Words:
        g = self.glyphs
        about, times = g.about, g.times
        forms = [
            (
                costs(found, kilo=g.kilo, plus_minus=g.plus_minus, about=about, times=times),
                remedy(found, about=about, times=times),
            ),
            in_short(found, about=about, times=times),
            in_short(found, about=about, times=times, others=False),
        ]
        for said, helps in forms:
            key = f"  {self.take_key} takes it" if helps and self.take_key else ""
            if found.mix == self._session.changed:
                key = "  (taken)"
            arrow = f" {g.arrow} " if helps else ""
            for last in (key, ""):
                if cell_len(said + arrow + helps + last) <= width:
                    return [(said, "bold"), (arrow, "$dim"), (helps, "$better"), (last, "$dim")]
        said, helps = forms[-1]
        return [(said, "bold"), (f" {g.arrow} " if helps else "", "$dim"), (helps, "$better")]
