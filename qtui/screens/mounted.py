"""The screens of an open session: which one is shown, and what the others must still repaint."""

from __future__ import annotations

from dataclasses import dataclass, field

from textual.app import App

from engine import protocol as p
from engine.client import EngineGoneError
from engine.session import Dirty, Session
from qtui.actions import own_commands
from qtui.pump import EVERYTHING
from qtui.screens.registry import WORKBENCH, actions_of, screens
from qtui.screens.session_screen import SessionScreen
from qtui.screens.shared_actions import SharedActions
from qtui.screens.spec import ScreenContext


@dataclass
class _Unpainted:
    """What changed since a screen was last painted."""

    dirty: set[Dirty] = field(default_factory=set)
    whole: bool = False
    """Whether the whole session was replaced meanwhile."""


class MountedScreens:
    """Create screens when first shown, paint the visible one, and pass events to all.

    A screen stays once created, with its cursor and its input.
    """

    def __init__(self, app: App[None], context: ScreenContext) -> None:
        """
        Args:
            app: whose screens they are.
            context: what they are made from.
        """
        self._app, self._context = app, context
        self._session = Session()
        self._failed = self._frozen = False
        self._made: dict[str, SessionScreen] = {}
        self._unpainted: dict[str, _Unpainted] = {}
        self._shown = WORKBENCH
        self.workbench = self._screen(WORKBENCH)

    @property
    def shown(self) -> SessionScreen:
        """The screen that a person sees, or that an overlay is open over."""
        return self._made[self._shown]

    def _screen(self, id: str) -> SessionScreen:
        """A screen by its id, made where it is not there yet."""
        if id not in self._made:
            spec = screens()[id]
            screen = spec.make(self._context)
            if screen.handler is None:
                SharedActions(screen, self._context.events)
            actions = actions_of(spec, self._context.profile.keys)
            if id == WORKBENCH:
                actions += own_commands(self._context.commands)
            screen.bind_actions(id, actions, self._context.keymap)
            screen.session, screen.failed = self._session, self._failed
            screen.themes = self._context.themes
            screen.freeze(self._frozen)
            self._made[id] = screen
            self._unpainted[id] = _Unpainted(set(EVERYTHING) if id != WORKBENCH else set())
            if id != WORKBENCH:
                # Textual removes a screen that is taken from the stack, unless it is installed.
                self._app.install_screen(screen, id)
        return self._made[id]

    async def switch_to(self, id: str | None, *, expecting: bool = False) -> None:
        """Show a screen; None, or the one that is shown already, shows the workbench."""
        wanted = WORKBENCH if id is None or id == self._shown else id
        if wanted == self._shown:
            return
        screen = self._screen(wanted)
        screen.expecting = expecting
        if self._shown != WORKBENCH:
            await self._app.pop_screen()
        if wanted != WORKBENCH:
            screen.arrive(self.workbench.current)
            await self._app.push_screen(screen)
        self._shown = wanted
        self._paint_shown()

    # --- what the engine's link says -----------------------------------------------------------

    def take_session(self, session: Session) -> None:
        """Set the session for events that arrive before the first repaint."""
        self._session = session
        for screen in self._made.values():
            screen.session = session

    def paint(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Paint what changed on the visible screen, and record it for the others."""
        self._session = session
        for unpainted in self._unpainted.values():
            unpainted.dirty |= dirty
            unpainted.whole |= whole
        self._paint_shown()

    def _paint_shown(self) -> None:
        unpainted, self._unpainted[self._shown] = self._unpainted[self._shown], _Unpainted()
        if unpainted.dirty:
            self.shown.show(self._session, frozenset(unpainted.dirty), whole=unpainted.whole)

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Pass an event to every screen before it is folded; false if it must not be folded."""
        folded = [screen.before_fold(event) for screen in self._made.values()]
        if isinstance(event, p.JobEnded) and event.kind == "open":
            self._set_failed(event.status != "done")
        return all(folded)

    def connecting(self) -> None:
        """An engine is being started."""
        self._set_failed(False)
        for screen in self._made.values():
            screen.connecting()

    def waiting(self, sentence: str) -> None:
        """No engine can be started yet."""
        for screen in self._made.values():
            screen.waiting(sentence)

    def connected(self) -> None:
        """There is an engine."""
        for screen in self._made.values():
            screen.connected()

    def lost(self, error: EngineGoneError) -> None:
        """The engine is gone."""
        self._set_failed(True)
        for screen in self._made.values():
            screen.lost(error)

    def _set_failed(self, failed: bool) -> None:
        self._failed = failed
        for screen in self._made.values():
            screen.failed = failed

    def freeze(self, frozen: bool) -> None:
        """The display is frozen, or follows the session again."""
        self._frozen = frozen
        for screen in self._made.values():
            screen.freeze(frozen)

    # --- messages ------------------------------------------------------------------------------

    def say(self, level: p.Level, words: str, lasts: float | None = None) -> None:
        """Show a message at the bottom of the visible screen."""
        self.shown.say(level, words, lasts)

    def say_and_log(self, level: p.Level, words: str) -> None:
        """Show a message, and log it."""
        self.workbench.say_and_log(level, words)
        if self._shown != WORKBENCH:
            self.say(level, words)
