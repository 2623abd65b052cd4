"""The best fix of each of several layers as a list of changes, to take or to leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from engine.report import wording as n
from engine.session import Session
from qtui.views.fixes import Change, kl_words
from qtui.views.text import Glyphs, fit, printable, short_name
from qtui.widgets.choices import Choices
from qtui.widgets.line import Lines, Words, spread


class FixChanges(ModalScreen[bool]):
    """What taking the best fixes would change; returns whether to take them."""

    DEFAULT_CSS = """
    FixChanges { align: center top; background: $background; }
    FixChanges > #box {
        width: 110; max-width: 100%; height: auto; max-height: 90%; margin-top: 1;
        border: round $primary; background: $surface; padding: 0 1;
    }
    FixChanges.-ascii > #box { border: ascii $primary; }
    FixChanges Choices { background: $surface; }
    FixChanges #foot { height: auto; background: $surface; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,F", "leave", "Leave all", id="fixes.leave"),
        Binding("enter", "take", "Take all", id="fixes.take"),
        Binding("k", "move(-1)", "Up", id="fixes.up"),
        Binding("j", "move(1)", "Down", id="fixes.down"),
    ]

    def __init__(self, session: Session, changes: Sequence[Change], glyphs: Glyphs) -> None:
        """
        Args:
            session: of the layers.
            changes: the best fix of each layer.
            glyphs: what to draw with.
        """
        super().__init__(classes="-ascii" if glyphs.ascii else None)
        self.session, self.changes, self.glyphs = session, list(changes), glyphs
        self.choices = Choices(self._draw, glyphs)

    def compose(self) -> ComposeResult:
        """The changes, their sum, and the keys."""
        with Vertical(id="box"):
            yield self.choices
            foot = Lines(id="foot", wrap=True)
            foot.set_lines([self._sum(), _keys()])
            yield foot

    def on_mount(self) -> None:
        """Show the changes."""
        self.choices.styles.height = max(1, min(len(self.changes), self.app.size.height - 9))
        self.choices.show(len(self.changes), 0)

    def _sum(self) -> Words:
        before = math.fsum(max(0.0, change.base.kl) for change in self.changes)
        after = math.fsum(max(0.0, change.fix.kl) for change in self.changes)
        bits = sum(change.fix.bits - change.base.bits for change in self.changes)
        measured = all(change.fix.measured and change.base.measured for change in self.changes)
        about = "" if measured else self.glyphs.about
        arrow, size = self.glyphs.arrow, n.size(bits / 8)
        count = "1 layer" if len(self.changes) == 1 else f"{len(self.changes)} layers"
        sign = "+" if bits >= 0 else ""
        kl = f"{n.short(1000 * before)} {arrow} {about}{n.short(1000 * after)}"
        said = f"{count}, sum of single effects: KL{self.glyphs.kilo} {kl}, {sign}{size}"
        return [(said, "")]

    def _draw(self, row: int, width: int) -> Words:
        change, glyphs, session = self.changes[row], self.glyphs, self.session
        at = session.index[change.layer]
        name = printable(short_name(change.layer, session.layers.blocks[at], 2)).strip()
        held = printable(session.layers.holds[at])
        after = printable(change.fix.format or session.kept(at))
        kl = f"{kl_words(change.base, glyphs)} {glyphs.arrow} {kl_words(change.fix, glyphs)}"
        won = f"{kl:>16} {change.fix.recovered:>5.0%}"
        room = max(12, width - len(won) - 2)
        before = printable(change.before)
        holds = "" if held == before else f"  holds {held}"
        left = fit(f"{name}  {before} {glyphs.arrow} {after}{holds}", room, glyphs)
        return spread([(left, "")], [(won, "$dim")], width)

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.choices.action_move(rows)

    def action_take(self) -> None:
        """Take all changes."""
        self.dismiss(True)

    def action_leave(self) -> None:
        """Change nothing."""
        self.dismiss(False)

    def on_choices_clicked(self) -> None:
        """A click only moves the cursor: enter takes all of them."""


def _keys() -> Words:
    return [
        ("enter", "bold $primary"),
        (" takes all   ", "$dim"),
        ("escape", "bold $primary"),
        (" leaves everything", "$dim"),
    ]
