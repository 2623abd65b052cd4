"""Overlays with something to read: the keys, and the notices."""

from __future__ import annotations

from itertools import zip_longest
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen

from engine.protocol import Level
from qtui.keys import GROUPS
from qtui.text import Glyphs, fit, printable
from qtui.widgets.line import Lines, PlainScrollBar, Words, cells
from qtui.widgets.status import MARKS, STYLES, bindings


class Overlay(ModalScreen[None]):
    """Lines to read over the workbench; closed by the key that opened it, or escape."""

    DEFAULT_CSS = """
    Overlay { align: center middle; background: $background 60%; }
    Overlay > VerticalScroll {
        width: 76; max-width: 100%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 0 1;
        scrollbar-size-vertical: 1;
    }
    Overlay.-ascii > VerticalScroll { border: ascii $primary; }
    Overlay Lines { height: auto; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,n", "dismiss", "Close", id="close"),
    ]

    def __init__(self, lines: list[Words], glyphs: Glyphs) -> None:
        super().__init__(classes="-ascii" if glyphs.ascii else None)
        self.lines = lines
        self.glyphs = glyphs

    def compose(self) -> ComposeResult:
        """The lines in a box that scrolls."""
        with VerticalScroll() as box:
            if self.glyphs.ascii:
                box.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]
            text = Lines(wrap=True)
            text.set_lines(self.lines)
            yield text


class Help(Overlay):
    """The keys, as they are bound now, and what the table's columns and marks mean."""

    LEFT, RIGHT = 37, 34

    def __init__(self, screen: Screen[None], glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        bound = bindings(screen)
        formats = tuple(id for id in bound if id.startswith("hold."))
        groups = dict(GROUPS, Recipe=formats + GROUPS["Recipe"])
        parts = {
            group: [[(group, "bold")]] + [self._key(*bound[id]) for id in ids if id in bound] + [[]]
            for group, ids in groups.items()
        }
        left = parts["Layers"] + parts["Engine"]
        right = parts["Recipe"] + parts["View"]
        if screen.app.size.width < self.LEFT + self.RIGHT + 5:
            lines = [line for part in parts.values() for line in part]
        else:
            nothing: Words = []
            lines = [
                [*words, (" " * (self.LEFT - cells(words)), ""), *others]
                for words, others in zip_longest(left, right, fillvalue=nothing)
            ]
        while lines and not cells(lines[-1]):
            lines.pop()
        super().__init__([*lines, [], *_legend(glyphs)], glyphs)

    def _key(self, key: str, description: str) -> Words:
        words = fit(description, min(len(description), self.LEFT - 10), self.glyphs)
        return [(f"{key:>8}  ", "bold $primary"), (words, "")]


def _legend(glyphs: Glyphs) -> list[Words]:
    g, ppl = glyphs, "dPPL" if glyphs.ascii else "ΔPPL"
    meanings = (
        ("holds", "the format in your recipe; fp16 and the like are as stored"),
        (f"KL{g.kilo}", "KL from the unchanged model, that layer alone quantised:"),
        ("", "thousandths of a nat per token"),
        (ppl, f"change of perplexity, {g.plus_minus} half of its 95% interval"),
        ("error", "of the weights: norm of the difference over norm"),
        (f">4{g.sigma}", "share of weights beyond so many standard deviations"),
        (f"{g.changed} {g.pending}", "changed by hand; asked for, not confirmed yet"),
        (g.finding, "a finding: an outlying input channel, NaN or Inf"),
        (g.about, "predicted: the sum of single effects; measured has no mark"),
    )
    lines: list[Words] = [[("Reading the screen", "bold")]]
    return lines + [[(f"{mark:>8}  ", "bold"), (meaning, "$dim")] for mark, meaning in meanings]


class NoticeLog(Overlay):
    """All notices of this session."""

    def __init__(self, said: list[tuple[Level, str]], glyphs: Glyphs) -> None:
        super().__init__(
            [
                [(f"{MARKS[level]} ", STYLES[level]), (printable(" ".join(message.split())), "")]
                for level, message in said
            ]
            or [[("nothing was said yet", "$dim")]],
            glyphs,
        )
