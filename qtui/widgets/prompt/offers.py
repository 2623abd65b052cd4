"""Completions of a line, listed above it."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len, set_cell_size

from qtui.views.completion import Completion
from qtui.views.text import Glyphs, fit, printable
from qtui.widgets.line import Lines, Words


class Offers(Lines):
    """The completions, as many as there is room for around the chosen one."""

    ROOM: ClassVar[int] = 6

    DEFAULT_CSS = """
    Offers { display: none; height: auto; background: $surface; padding: 0 1; }
    Offers.-shown { display: block; }
    """

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__()
        self.glyphs = glyphs
        self.offers: list[Completion] = []
        self.chosen: int | None = None
        self.first = 0

    def show(self, offers: list[Completion], chosen: int | None) -> None:
        """Show completions, one of them chosen or none."""
        if offers is not self.offers:
            self.first = 0
        self.offers, self.chosen = offers, chosen
        self.set_class(bool(offers), "-shown")
        if chosen is not None:
            self.first = max(min(self.first, chosen), chosen - self.ROOM + 1)
        self._write()

    def on_resize(self) -> None:
        """Lay the columns out for the new width."""
        self._write()

    def _write(self) -> None:
        width = (self.content_size.width or self.screen.size.width - 2) - 2
        shown = self.offers[self.first : self.first + self.ROOM]
        names = [printable(offer.text) for offer in shown]
        column = min(max(map(cell_len, names), default=0), max(width * 3 // 5, 20))
        lines: list[Words] = []
        for place, (offer, name) in enumerate(zip(shown, names, strict=True), self.first):
            here = place == self.chosen
            ground = " on $cursor" if here else ""
            last = place == self.first + self.ROOM - 1 and len(self.offers) > self.ROOM
            at = (self.chosen if self.chosen is not None else place) + 1
            tail = f" {at} of {len(self.offers)}" if last else ""
            says = fit(printable(offer.says), width - column - 2 - len(tail), self.glyphs)
            lines.append(
                [(f"{self.glyphs.cursor if here else ' '} ", f"bold $primary{ground}"),
                 (shortened(name, column, self.glyphs),
                  ("$dim" if offer.dim else "bold" if here else "$foreground") + ground),
                 (f"  {says}{tail}", "$dim" + ground)]
            )  # fmt: skip
        self.set_lines(lines)


def shortened(name: str, width: int, glyphs: Glyphs) -> str:
    """A name in exactly ``width`` cells; one that is too long loses its middle.

    Its beginning says what is saved; its end is the last folder, the file and its extension.
    """
    if cell_len(name) <= width:
        return fit(name, width, glyphs)
    head = width // 3
    return set_cell_size(name, head) + fit(name, width - head, glyphs, end=False)


def in_common(texts: list[str]) -> str:
    """The beginning that all texts share."""
    first, last = min(texts, default=""), max(texts, default="")
    same = (place for place, char in enumerate(first) if not last[place:].startswith(char))
    return first[: next(same, len(first))]
