"""A screen with a key of its own: weights by kind, counted when ``c`` is pressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult

from engine.session import Dirty, Session
from qtui.actions import Action
from qtui.screens.session_screen import SessionScreen
from qtui.screens.shared_actions import SharedActions
from qtui.screens.spec import ScreenContext, ScreenSpec
from qtui.widgets.line import Lines
from tests.plugins.example.job import CountWeights, WeightCounts


class Kinds(SessionScreen):
    """One line for each kind."""

    CSS = "#kinds { height: 1fr; }"  # not `Lines`: the foot is made of them too

    def __init__(self, context: ScreenContext) -> None:
        super().__init__(context.glyphs)
        self.lines = Lines(id="kinds")

    def compose(self) -> ComposeResult:
        yield self.lines
        yield from self.foot()

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        self.session = session
        counts = [
            job.read(WeightCounts)
            for job in session.jobs.values()
            if isinstance(job.command, CountWeights) and job.status == "done"
        ]
        found = counts[-1].weights if counts else {}
        self.lines.set_lines(
            [[(f"{kind:<16} {count:>14,}", "")] for kind, count in found.items()]
            or [[(f"{self.key('kinds.count')} counts the weights", "$dim")]]
        )


class KindsActions(SharedActions):
    """The actions of every screen, and one more."""

    HANDLERS: ClassVar[Mapping[str, Callable[[Any], None]]] = {
        **SharedActions.HANDLERS,
        "kinds.count": lambda do: do.ask(CountWeights()),
    }


def _make(context: ScreenContext) -> SessionScreen:
    screen = Kinds(context)
    KindsActions(screen, context.events)
    return screen


SCREEN = ScreenSpec(
    Action("kinds", "K", "Weights by kind", "View", "kinds"),
    _make,
    (Action("kinds.count", "c", "Count weights", "View", "count"),),
)
