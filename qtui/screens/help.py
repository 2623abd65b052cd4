"""Overlays to read: the help and the event log."""

from __future__ import annotations

from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, ClassVar, get_args

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from engine.protocol import Settings
from engine.report.figures.registry import column_figures, filter_figures
from qtui.actions import Action, Group, bindings
from qtui.views.text import BELOW, DOUBT, Glyphs
from qtui.widgets.frame.status import key_names
from qtui.widgets.line import Lines, PlainScrollBar, Words, cells
from qtui.widgets.table.cells import TableStyle
from qtui.widgets.table.headings import heading

if TYPE_CHECKING:
    from qtui.screens.session_screen import SessionScreen


class Overlay(ModalScreen[None]):
    """Lines to read over the workbench; closed by the key that opened it, or escape."""

    DEFAULT_CSS = """
    Overlay { align: center middle; background: $background; }
    Overlay > VerticalScroll {
        width: 80; max-width: 100%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 0 1;
        scrollbar-size-vertical: 1;
    }
    Overlay.-ascii > VerticalScroll { border: ascii $primary; }
    Overlay Lines { height: auto; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,n,enter", "dismiss", "Close"),
    ]

    def __init__(self, lines: list[Words], glyphs: Glyphs, *, at_end: bool = False) -> None:
        super().__init__(classes="-ascii" if glyphs.ascii else None)
        self.lines = lines
        self.glyphs = glyphs
        self.at_end = at_end

    def compose(self) -> ComposeResult:
        """The lines in a box that scrolls."""
        with VerticalScroll() as box:
            if self.glyphs.ascii:
                box.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]
            text = Lines(wrap=True)
            text.set_lines(self.lines)
            yield text

    def on_mount(self) -> None:
        """Scroll to the newest line if it is the last."""
        if self.at_end:
            self.query_one(VerticalScroll).scroll_end(animate=False)


class LogScreen(Overlay):
    """The event log, newest at the bottom."""

    DEFAULT_CSS = """
    LogScreen > VerticalScroll { width: 95%; }
    """

    def __init__(self, lines: list[Words], glyphs: Glyphs) -> None:
        super().__init__(lines or [[("no events yet", "$dim")]], glyphs, at_end=True)


class Help(Overlay):
    """The current scope, the keys as they are bound, and what columns and signs mean."""

    LEFT, RIGHT = 37, 37
    BINDINGS: ClassVar[list[BindingType]] = [Binding("slash", "search", "Search")]
    READING: ClassVar[frozenset[str]] = frozenset(
        {"escape", "q", "question_mark", "f1", "n", "enter", "slash", "up", "down", "pageup"}
        | {"pagedown", "home", "end", "tab", "ctrl+c"}
    )
    """Keys that scroll, search or close the help."""

    def __init__(self, screen: SessionScreen) -> None:
        self.about, self.glyphs = screen, screen.glyphs
        parts = {group: self._group(group) for group in get_args(Group)}
        left = parts["Move"] + parts["Select"] + parts["Engine"]
        right = parts["Recipe"] + parts["View"] + parts["Save"]
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
        super().__init__(
            [*self._here(), [], *lines, [], *_legend(self.glyphs), [], *_filters()], self.glyphs
        )

    def action_search(self) -> None:
        """Search what is listed here; enter runs it."""
        self.dismiss()
        self.app.call_later(self.about.action_do, "palette")

    def on_key(self, event: events.Key) -> None:
        """Run the action whose key is pressed, as without the help."""
        if event.key in self.READING:
            return
        for action in self.about.actions:
            if event.key in (binding.key for binding in bindings([action])):
                event.stop().prevent_default()
                self.dismiss()
                self.app.call_later(self.about.action_do, action.id)
                return

    def _here(self) -> list[Words]:
        """What the keys would change now."""
        about = self.about
        here, possible = about.here()
        hint: Words = [("/ searches and runs; a key does what it says", "$dim")]
        lines: list[Words] = [hint, [("Here: ", "bold"), (here, "" if possible else "$dim")]]
        if not possible:
            return lines
        greyed = [
            (action.title, why)
            for action in about.actions
            if action.word and (why := about.why_not(action.id))
        ]
        for title, why in greyed:
            lines.append([(f"      not now: {title.lower()}: {why}", "$dim")])
        return lines

    def _group(self, group: Group) -> list[Words]:
        found = [action for action in self.about.actions if action.group == group]
        title: Words = [(group, "bold")]
        keys = (line for action in found if action.keys for line in self._key(action))
        return [title, *keys, []]

    def _key(self, action: Action) -> list[Words]:
        """A key and its title, which goes on in further lines where the column is too narrow."""
        key = " ".join(key_names(self.about.app, action))
        style = "$dim" if self.about.why_not(action.id) else ""
        lines = wrap(action.title, self.LEFT - 11)
        return [
            [(f"{key if at == 0 else '':>8}  ", "bold $primary"), (line, style)]
            for at, line in enumerate(lines)
        ]


def _filters() -> list[Words]:
    """How rows are filtered, with examples: of words, then of figures."""
    examples = [
        f"{figure.id}{word.example}"
        for figure in filter_figures().values()
        if (word := figure.filter) is not None and word.common
    ]
    words = "down  kind:q_proj  block<4  block:2-5", "fmt:int4  is:changed  re:mlp.*up"
    return [
        [
            ("Filters", "bold"),
            ("  terms separated by spaces; all must match; - negates a term", ""),
        ],
        *([(f"{'':10}{line}", "$dim")] for line in (*words, "  ".join(examples))),
    ]


def legend(glyphs: Glyphs) -> list[tuple[str, str]]:
    """Columns and signs with what they mean; a column's further lines have no sign."""
    g = glyphs
    style = TableStyle(glyphs, "", 0.0, Settings().sigma, 0)
    signs_by_name = {name: getattr(g, name) for name in Glyphs.__annotations__}
    columns = [
        (heading(figure, style).strip() if at == 0 else "", line.format(**signs_by_name))
        for figure in column_figures()
        if figure.column is not None
        for at, line in enumerate(figure.column.legend)
    ]
    signs = (
        (f"{g.changed} {g.pending}", "changed by hand; requested, not confirmed yet"),
        (g.finding, "a finding: an outlier input channel, NaN or Inf"),
        (f"{g.refused} {g.unserved}", "the export target cannot hold it; it can, but see the pane"),
        (g.about, "estimated, or a sum of single effects; measured has no sign"),
        (DOUBT, "an unreliable estimate: the pane says why"),
        (BELOW, "measured, but below what rounding alone can cause"),
    )
    return [*columns, *signs]


def in_one_line(legend: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A legend with all lines of a column or sign joined."""
    joined: list[tuple[str, str]] = []
    for sign, meaning in legend:
        if sign or not joined:
            joined.append((sign, meaning))
        else:
            joined[-1] = joined[-1][0], f"{joined[-1][1]} {meaning}"
    return joined


def _legend(glyphs: Glyphs) -> list[Words]:
    lines: list[Words] = [[("Reading the screen", "bold")]]
    return lines + [
        [(f"{mark:>8}  ", "bold"), (meaning, "$dim")] for mark, meaning in legend(glyphs)
    ]
