"""The verdict in a line: what a uniform format costs, and the cheapest mix that helps."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.cells import cell_len
from textual.message import Message

from engine.diagnosis.serving import Serving
from engine.diagnosis.verdict import Steps, Verdict, verdict_in_steps
from engine.report.verdicts import costs, in_short, remedy
from engine.session import Session
from qtui.sliced import Sliced
from qtui.textual_internals import call_after, calling_after
from qtui.views.text import UNICODE, Glyphs
from qtui.widgets.line import Lines, Words

REST = 20.0
"""How many times longer than a verdict took there is none again: most of the time is for keys."""
LEAST = 0.5
"""Seconds between two verdicts, at least."""


NONE_YET = "no verdict before all layers are estimated"


def _guarded(session: Session, format: str, serving: Serving | None) -> Steps[Verdict | None]:
    """The steps of a verdict, which end when the layers are listed anew or the baseline changes.

    Rows are others then, or effects those of another protocol.
    """
    layers, baseline = session.layers, session.baseline
    steps = verdict_in_steps(session, format, serving)
    while layers is session.layers and baseline is session.baseline:
        try:
            next(steps)
        except StopIteration as end:
            found: Verdict | None = end.value
            return found
        yield
    return None


class VerdictLine(Lines):
    """One line, which is there from the start: nothing below it moves when there is a verdict."""

    DEFAULT_CSS = """
    VerdictLine { height: 1; padding: 0 1 0 0; }
    VerdictLine.-here { background: $cursor; }
    """

    @dataclass
    class Clicked(Message):
        """The line was clicked."""

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.found: Verdict | None = None
        """The verdict that is shown."""
        self.take_key = "V"
        """The key that takes its mix."""
        self.enter_key = "enter"
        """The key that takes it while the cursor is on the line."""
        self.here = False
        """Whether the cursor is on the line."""
        self._session, self._format = Session(), ""
        self._serving: Serving | None = None
        self._next = 0.0
        self._waits = False
        self._sliced: Sliced[Verdict | None] = Sliced(calling_after(self))

    def follow(self, session: Session, format: str, serving: Serving | None = None) -> None:
        """Judge a session that changed: at once, or once the last verdict is old enough.

        Args:
            session: with effects.
            format: whose verdict is shown; empty for none.
            serving: what its mix may have; None for what some serving kernel takes.
        """
        before = self._serving.to if self._serving is not None else ""
        self._session, self._format, self._serving = session, format, serving
        if (serving.to if serving is not None else "") != before:
            self._next = 0.0  # another target is another question
        if self._waits:
            return
        left = self._next - time.monotonic()
        if left <= 0 and not self._sliced.busy:
            self._judge()
        else:
            self._waits = True
            call_after(self, max(left, LEAST), self._later)

    def _later(self) -> None:
        """Judge now, or once the verdict that is being made is there."""
        if self._sliced.busy or self._next > time.monotonic():
            call_after(self, LEAST, self._later)
        else:
            self._judge()

    def _judge(self) -> None:
        """Judge in slices; the session may be another meanwhile, and is judged again later."""
        self._waits = False
        layers = self._session.layers
        self._next = time.monotonic() + LEAST

        def done(found: Verdict | None) -> None:
            self._next = time.monotonic() + max(LEAST, REST * self._sliced.took)
            if layers is self._session.layers:  # else listed anew: rows are others
                self.found = found
                self.draw()

        if self._format:
            self._sliced.begin(_guarded(self._session, self._format, self._serving), done)
        else:
            self._sliced.stop()
            done(None)

    def put_cursor(self, *, here: bool) -> None:
        """Put the cursor on the line, or take it away."""
        if here != self.here:
            self.here = here
            self.draw()

    def draw(self) -> None:
        """Draw the verdict for the width there is."""
        self.here = self.here and self.found is not None and bool(self.found.mix)
        self.set_class(self.here, "-here")
        if self.found is None:
            self.set_lines([[(" ", ""), (NONE_YET, "$dim")]])
            return
        width = (self.content_size.width or self.app.size.width - 1) - 1
        mark = (self.glyphs.cursor, "bold $primary") if self.here else (" ", "")
        self.set_lines([[mark, *self._words(self.found, width)]])

    def on_click(self) -> None:
        """The screen decides what a click does."""
        self.post_message(self.Clicked())

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
            in_short(found, about=about, times=times, others=False, worst=False),
        ]
        key = f"  {self.enter_key if self.here else self.take_key}"
        hints = ["  (taken)"] if found.mix == self._session.changed else [f"{key} takes it", key]
        arrow = f" {g.arrow} " if found.mix else ""
        # Words of the verdict are left out before its key is.
        tried = [(form, last) for form in forms for last in (hints if found.mix else [""])]
        for (said, helps), last in [*tried, (forms[-1], "")]:
            if cell_len(said + arrow + helps + last) <= width:
                break
        return [(said, "bold"), (arrow, "$dim"), (helps, "$better"), (last, "$dim")]
