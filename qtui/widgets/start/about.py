"""What is known about a checkpoint before it is opened, and any problem with it."""

from __future__ import annotations

import os

from engine.opening.inspection import Inspection
from engine.store.past_sessions import PastSession
from qtui.views.text import UNICODE, Glyphs, fit, printable
from qtui.widgets.line import Lines, Words
from qtui.widgets.start import recent


class About(Lines):
    """Where it lies, what it is or why it cannot be opened, and what was measured of it."""

    def __init__(self, glyphs: Glyphs = UNICODE, *, id: str | None = None) -> None:
        super().__init__(id=id, wrap=True)
        self.glyphs = glyphs

    def show(
        self,
        source: str,
        found: Inspection | None,
        past: PastSession | None,
        *,
        loud: bool = False,
        waits: bool = False,
    ) -> None:
        """Say it.

        Args:
            source: what was chosen or typed; may be nothing.
            found: what inspecting it found; None while that goes on.
            past: its session, if it has one.
            loud: somebody wanted to open it, and it cannot be.
            waits: somebody wants to open it, and it is being inspected.
        """
        width = max(20, self.content_size.width)
        said = past.problem if past is not None else ""
        if not source:
            asked = "! type a source: " if loud else ""
            hint = "a folder with a config.json, a hub id as org/name, or demo"
            nothing: Words = [(asked, "$warning"), (hint, "$dim")]
            named: Words = [(printable(past.name), "bold")] if past is not None else []
            self.set_lines([named, self._bad(said, loud)] if past is not None else [nothing])
            return
        home = os.path.expanduser("~")
        where = "~" + source[len(home) :] if source.startswith(f"{home}/") else source
        lines: list[Words] = [[(fit(printable(where), width, self.glyphs, end=False), "bold")]]
        if found is None:
            wait = "checking before opening; press enter again to open now"
            lines.append([(wait if waits else f"checking{self.glyphs.ellipsis}", "$dim")])
        elif found.problem:
            lines.append(self._bad(found.problem, loud))
            lines.append([(_line(found.advice), "")])
        else:
            lines.append([(recent.sentence(found) or "nothing is known about it yet", "")])
            lines.append([(_line(found.note), "$dim")])
        if past is not None and found is not None and not found.problem:
            known = [(recent.known(past, self.glyphs, width), "$dim")]
            lines.append(self._bad(said, loud) if said else known)
        self.set_lines([line for line in lines if any(text for text, _ in line)])

    def _bad(self, problem: str, loud: bool) -> Words:
        style = "bold $error" if loud else "$warning"
        return [("x not opened: " if loud else "! ", style), (_line(problem), style)]


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
