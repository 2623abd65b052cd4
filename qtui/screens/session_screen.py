"""Base class of the screens that show a session: painted by the pump, driven by actions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

from textual.binding import Binding, BindingType
from textual.message import Message as TextualMessage
from textual.screen import Screen
from textual.widget import Widget

from engine import protocol as p
from engine.client import EngineGoneError
from engine.session import Dirty, Session
from qtui.actions import HOLD, Action, bindings, remapped
from qtui.textual_internals import bind_key
from qtui.views.text import UNICODE, Glyphs
from qtui.widgets.frame.status import KeyBar, Message, key_names

AppWide: TypeAlias = Literal[
    "retry", "quit", "stop", "freeze", "unfreeze", "theme", "redraw", "suspend"
]
"""What only the app can do."""


class ActionHandler(Protocol):
    """Runs a screen's actions by their ids."""

    def perform(self, id: str) -> None:
        """Run an action, or say why that is not possible."""

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""


UNCHANGED = "every layer is as stored: give some a format first"
"""Why nothing can be asked of the recipe."""


class SessionScreen(Screen[None]):
    """A screen that shows a session.

    `qtui.screens.mounted.MountedScreens` calls the methods under "what the engine's link says". A
    screen that is not shown is not painted: what changed meanwhile is passed to `show` when it is
    shown again. A subclass draws in `show`, yields `foot` last in ``compose``, and overrides what
    else it needs.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back", show=False)]

    @dataclass
    class Ask(TextualMessage):
        """A command for the engine."""

        command: p.AnyCommand

    @dataclass
    class AppWideAction(TextualMessage):
        """An action of the whole app."""

        what: AppWide
        value: str = ""
        """For ``theme``, its name; empty for the next one."""

    @dataclass
    class ShowScreen(TextualMessage):
        """Show the screen with this id; None shows the workbench."""

        id: str | None
        expecting: bool = False
        """Whether what it shows was asked for already, so that it need not ask."""

    @dataclass
    class ShowLayer(TextualMessage):
        """Show the workbench with its cursor on a layer."""

        layer: str

    def __init__(self, glyphs: Glyphs = UNICODE) -> None:
        super().__init__()
        self.glyphs = glyphs
        self.session = Session()
        """What was drawn last."""
        self.failed = False
        """Whether there is something to try again: no engine, or a checkpoint that is not open."""
        self.expecting = False
        """Whether what it shows was asked for by who showed it."""
        self.message = Message(glyphs, id="message")
        self.keybar = KeyBar(id="keys")
        self.actions: list[Action] = []
        """Every action with the keys it has here."""
        self.refused_keys: list[str] = []
        """Keys of the profile that an action has already."""
        self.themes: Callable[[], Sequence[tuple[str, str]]] = lambda: ()
        """Names of the themes, with a few words about each."""
        self.handler: ActionHandler | None = None
        """Runs the actions; set by the creator of the screen."""
        if glyphs.ascii:
            self.add_class("-ascii")

    def foot(self) -> Iterable[Widget]:
        """The message line and the key bar."""
        yield self.message
        yield self.keybar

    # --- what the engine's link says -----------------------------------------------------------

    def show(self, session: Session, dirty: frozenset[Dirty], *, whole: bool = False) -> None:
        """Draw the parts of the session that changed; ``whole`` if all of it was replaced."""
        raise NotImplementedError

    @property
    def current(self) -> str | None:
        """The layer under the cursor; None where there is none."""
        return None

    def arrive(self, layer: str | None) -> None:
        """The screen is about to be shown, from a table whose cursor is on this layer."""

    def before_fold(self, event: p.AnyEvent) -> bool:
        """Handle an event before it is folded, visible or not; false if it must not be folded."""
        return True

    def connecting(self) -> None:
        """An engine is being started."""

    def waiting(self, sentence: str) -> None:
        """An engine can only be started after something else has ended."""
        self.say("info", sentence)

    def connected(self) -> None:
        """An engine is connected; it knows nothing of commands sent to the previous one."""

    def lost(self, error: EngineGoneError) -> None:
        """The engine is gone."""
        self.say("error", f"{error.reason}: {self.key('retry')} {error.remedy}")

    def refused(self, why: str = "") -> None:
        """A command was not sent: there is no engine, if nothing else is said."""
        said = why or f"no engine is running: {self.key('retry')} restarts it"
        self.say("warning", said)

    def freeze(self, frozen: bool) -> None:
        """The display is frozen, or follows the session again."""

    # --- messages ------------------------------------------------------------------------------

    def say(self, level: p.Level, words: str, lasts: float | None = None) -> None:
        """Show a message at the foot; ``lasts`` seconds, or what is usual."""
        self.message.say(level, words, lasts)

    def ended(self, event: p.JobEnded) -> None:
        """Say how a job of this screen ended; once one is done, what went wrong before is over."""
        if event.message:
            self.say("error" if event.status == "failed" else "info", event.message)
        elif event.status == "done" and self.message.said[0] != "info":
            self.message.clear()

    def say_and_log(self, level: p.Level, words: str) -> None:
        """Show a message at the bottom, and log it if this screen has a log."""
        self.say(level, words)

    # --- actions and their keys ----------------------------------------------------------------

    def bind_actions(self, id: str, actions: Sequence[Action], keymap: Mapping[str, str]) -> None:
        """Bind actions to their keys; a key of a profile or a screen that is taken binds nothing.

        Args:
            id: of the action that shows this screen: it has a key here too, but is not listed.
            actions: with their usual keys.
            keymap: keys of actions by their ids, where they are not the usual ones.
        """
        taken: set[str] = set()
        bound = []
        for action in remapped(actions, keymap):
            keys = [binding.key for binding in bindings([action])]
            free = [key for key in keys if key not in taken]
            self.refused_keys += [
                key for key in keys if key in taken and action.id.startswith(HOLD)
            ]
            taken.update(free)
            bound.append(action._replace(keys=",".join(free)) if free != keys else action)
        self.actions = [action for action in bound if action.id != id]
        self.keybar.actions = self.actions
        for binding in bindings(bound):
            bind_key(self, binding)

    def key(self, id: str) -> str:
        """The first key of an action as a person reads it."""
        action = next(action for action in self.actions if action.id == id)
        return next(iter(key_names(self.app, action)), "the palette")

    def here(self) -> tuple[str, bool]:
        """What the keys act on now, for the help, and whether there is anything to act on."""
        return "the session", bool(self.session.layers.names)

    def why_not(self, id: str) -> str:
        """Why an action is not possible now; empty where it is."""
        return self.handler.why_not(id) if self.handler is not None else ""

    def action_do(self, id: str) -> None:
        """Run an action of the registry."""
        if self.handler is not None:
            self.handler.perform(id)

    def action_back(self) -> None:
        """Return to the workbench."""
        self.post_message(self.ShowScreen(None))

    def on_key_bar_pressed(self, pressed: KeyBar.Pressed) -> None:
        """An entry of the key bar was clicked."""
        self.action_do(pressed.id)
