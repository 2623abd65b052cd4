"""The terminal interface: its screens, its themes, its keys."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rich.console import RenderableType
from textual import events
from textual._dispatch_key import dispatch_key
from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter, Monochrome, NoColor
from textual.message_pump import MessagePump
from textual.screen import Screen

from engine import protocol as p
from engine.client import Link, launch
from engine.errors import EngineError
from engine.profiles import Profile
from engine.session import Session
from qtui.engine_link import GOODBYE, Life
from qtui.pump import Pump
from qtui.screens.workbench.actions import Deeds
from qtui.screens.workbench.screen import Workbench
from qtui.terminal import TerminalDriver, end_on_signals
from qtui.user.remembered import Remembered, remember_theme
from qtui.user.theme_watch import ThemeShelf
from qtui.user.themes import default_theme, depth
from qtui.views.text import PLAIN, UNICODE, Glyphs, only_ascii

if TYPE_CHECKING:
    from qtui.screens.start.screen import Start

QUESTIONS = (p.AskHistogram, p.AskExperts)
"""Commands that nobody pressed a key for."""
AGAIN = 4.0
"""Seconds in which a second ``ctrl+c`` quits."""


class Look(NamedTuple):
    """How the interface is drawn and which keys it has."""

    ascii: bool = False
    """Draw with ASCII characters only."""
    theme: str | None = None
    """None takes the one that suits the terminal."""
    remembered: Remembered = Remembered()
    """What an earlier run left: whether the pane is shown, how histograms are drawn."""
    keymap: Mapping[str, str] = {}
    """Keys of actions by their ids, where they are not the usual ones."""
    problems: tuple[str, ...] = ()
    """What is wrong with the user's own files, to be said once there is a screen."""


PLAINLY = Look()
"""As nobody said otherwise."""


class Choice(NamedTuple):
    """What stands behind the start screen."""

    screen: Callable[[Glyphs], Screen[None]]
    """Makes the screen; it posts `Start.Chosen`."""
    resolve: Callable[[str], tuple[p.Settings, Profile]]
    """Settings and profile for the name of a profile."""


class QtuiApp(App[None]):
    """Shows a session and passes on what a person wants; never waits for the engine."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "qtui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", "Quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", "To the shell", show=False, priority=True),
    ]

    def __init__(
        self,
        source: str | None,
        settings: p.Settings,
        profile: Profile,
        connect: Callable[[], Awaitable[Link]] | None = None,
        look: Look = PLAINLY,
        choice: Choice | None = None,
        shelf: ThemeShelf | None = None,
    ) -> None:
        """
        Args:
            source: ``demo``, a folder, or a hub id; None lets a person choose first.
            settings: how everything is measured.
            profile: keys and repaints a second.
            connect: gives a link to an engine; None starts one.
            look: how it is drawn.
            choice: the start screen; needed where there is no source.
            shelf: the themes; None reads them.
        """
        super().__init__(driver_class=TerminalDriver)
        if self.no_color:
            # Textual would send greys, which are colours to a terminal too.
            self._filters = [
                NoColor() if isinstance(each, Monochrome) else each for each in self._filters
            ]
        self.animation_level = "none"
        self.look, self.choice = look, choice
        self.glyphs = PLAIN if look.ascii else UNICODE
        self._connect = connect
        self._painting = self._begun = False
        self._leaving = False
        self._code: int | None = None
        """Exit code of a signal that ends the interface."""
        self._interrupted = float("-inf")
        if "suspend" in look.keymap:
            # A person gave it another key, and may have given this one to something else.
            self._bindings.key_to_bindings.pop("ctrl+z", None)
        self.shelf = shelf or ThemeShelf()
        self.shelf.register(self)
        self.theme = look.theme or default_theme(os.environ)
        self.life: Life | None = None
        if source is not None:
            self.life = self._life(source, settings, profile)

    def _life(self, source: str, settings: p.Settings, profile: Profile) -> Life:
        bench = Workbench(source, profile, self.glyphs, self.look.keymap)
        bench.remember(self.look.remembered)
        Deeds(bench)
        connect = self._connect or (lambda: launch(source, nice=profile.nice))
        return Life(self, bench, source, settings, profile, connect, self._behind)

    @property
    def alive(self) -> Life:
        """The life of the engine that is shown.

        Raises:
            RuntimeError: no checkpoint was chosen yet.
        """
        if self.life is None:
            raise RuntimeError("no checkpoint was chosen yet")
        return self.life

    @property
    def workbench(self) -> Workbench:
        """The workbench."""
        return self.alive.bench

    @property
    def pump(self) -> Pump:
        """What folds the engine's events."""
        return self.alive.pump

    @property
    def session(self) -> Session:
        """What is known."""
        return self.alive.session

    def get_default_screen(self) -> Screen[object]:
        """The workbench or the start screen: it stands in the first frame."""
        if self.life is None:
            assert self.choice is not None, "no source, and no start screen to choose one on"
            return self.choice.screen(self.glyphs)  # type: ignore[return-value]
        return self.workbench  # type: ignore[return-value]

    def on_ready(self) -> None:
        """Paint the first frame once: by then every widget has made use of its room."""
        self.call_after_refresh(self._first_frame)

    def _first_frame(self) -> None:
        self._painting = True
        self.screen.refresh()
        self.call_after_refresh(self._begin)

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        """Send nothing before the first whole frame: Textual would paint its parts as they come."""
        if self._painting:
            super()._display(screen, renderable)

    def on_mount(self) -> None:
        """Follow themes and what becomes of the terminal."""
        # What stood on the other screen is gone when the process comes back to it.
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))
        self.set_interval(1.0, self._follow_themes)

    def _follow_themes(self) -> None:
        for problem in self.shelf.poll(self):
            if self.life is not None:
                self.workbench.tell("warning", problem)

    def _begin(self) -> None:
        if self.life is not None and not self._begun:
            # A start screen may be left before its own first frame stands.
            self._begun = True
            self.life.begin()
            for problem in self.look.problems:
                self.workbench.tell("warning", problem)

    def on_start_chosen(self, chosen: Start.Chosen) -> None:
        """Open what was chosen on the start screen, once however often enter was pressed."""
        from qtui.widgets.prompt.prompt import Prompt, Verdict

        if self.life is not None:
            return
        assert self.choice is not None
        try:
            settings, profile = self.choice.resolve(chosen.profile_name)
        except EngineError as error:
            # The profiles were changed since they were read first.
            self.query_one(Prompt).say(Verdict(False, str(error)), loud=True)
            return
        self.life = self._life(chosen.source, settings, profile)
        # Over the start screen, not in its place: a first screen cannot be taken away.
        self.push_screen(self.workbench)
        self.call_after_refresh(self._begin)

    async def on_start_leave(self) -> None:
        """Go without having chosen anything."""
        await self.action_quit()

    def _behind(self) -> bool:
        """Whether the terminal still has frames to take."""
        writer = getattr(self._driver, "_writer_thread", None)
        return writer is not None and writer._queue.qsize() > 1

    async def on_event(self, event: events.Event) -> None:
        """Carry a key through before the next one is looked at.

        Textual hands every key to what has the focus as it comes; of keys that come together, as
        over a slow line, the later ones would not find a prompt that the first one opens.
        """
        if isinstance(event, events.Key) and not event.is_forwarded:
            await self._hear_key(event)
        else:
            await super().on_event(event)

    async def _hear_key(self, event: events.Key) -> None:
        self.app_focus = True
        if await self._check_bindings(event.key, priority=True):
            return
        event._set_forwarded()
        event.bubble = False  # type: ignore[misc]  # taken on here
        node: MessagePump | None = self.focused or self.screen
        while node is not None and node is not self:
            with node._context():
                await node._dispatch_message(event)
            if event._stop_propagation:
                return
            event._no_default_action = False
            node = node._parent
        if not await self._check_bindings(event.key):
            await dispatch_key(self, event)

    def get_key_display(self, binding: Binding) -> str:
        """Names of keys, without arrows where only ASCII is drawn."""
        shown = super().get_key_display(binding)
        return shown if shown.isascii() or not self.glyphs.ascii else binding.key

    # --- what a person wants ------------------------------------------------------------------

    def on_workbench_ask(self, ask: Workbench.Ask) -> None:
        """Pass a command on."""
        if not self.alive.ask(ask.command) and not isinstance(ask.command, QUESTIONS):
            self.workbench.refused()

    async def on_workbench_wanted(self, wanted: Workbench.Wanted) -> None:
        """Do what is the app's to do."""
        life, bench = self.alive, self.workbench
        match wanted.what:
            case "retry":
                bench.message.say("info", life.retry())
            case "leave":
                await self.action_quit()
            case "suspend":
                self.action_suspend_process()
            case "theme":
                self.choose_theme(self.shelf.next(self.theme))
            case "freeze":
                life.freeze(not life.frozen)
            case "thaw":
                life.freeze(False)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What every line goes through last: a theme may want the terminal's own colours."""
        return self.shelf.filters(self, super().get_line_filters())

    def choose_theme(self, name: str) -> None:
        """Draw in another theme from now on, and remember it for terminals like this one."""
        self.theme = name
        problem = remember_theme(name, depth(os.environ))
        about = dict(self.shelf.listed()).get(name, "")
        self.workbench.message.say("info", f"theme {name}: {about}")
        if problem:
            self.workbench.tell("warning", problem)

    async def action_interrupt(self) -> None:
        """``ctrl+c``: twice in `AGAIN` seconds quits, so that one stray press ends nothing."""
        now = time.monotonic()
        if now - self._interrupted < AGAIN or self.life is None:
            await self.action_quit()
            return
        self._interrupted = now
        cancels = self.workbench.key("cancel")
        said = f"ctrl+c again quits; {cancels} cancels what is running"
        self.workbench.message.say("warning", said, AGAIN)

    async def action_quit(self) -> None:
        """Stop the engine and go."""
        if self._leaving:
            return
        self._leaving = True
        if self.life is None:
            self.exit(return_code=self._code or 0)
            return
        self.workbench.message.say("info", "stopping the engine")
        self.run_worker(self._goodbye(self.life), group="goodbye")

    def leave(self, code: int) -> None:
        """Stop the engine and go, with this exit code; from a signal's handler."""
        loop = asyncio.get_running_loop()
        self._code = code
        loop.call_soon_threadsafe(lambda: self.call_later(self.action_quit))

    async def _goodbye(self, life: Life) -> None:
        await life.end()
        self.exit(return_code=life.open_failed() if self._code is None else self._code)


def run(
    source: str | None,
    settings: p.Settings,
    profile: Profile,
    *,
    look: Look = PLAINLY,
    choice: Choice | None = None,
    shelf: ThemeShelf | None = None,
    started: subprocess.Popen[bytes] | None = None,
) -> int:
    """Run the terminal interface until a person leaves it, and return the exit code.

    ``started`` is the engine that was started ahead. Whoever leaves by another way than quitting
    (a signal, an error) takes it along.
    """

    async def connect() -> Link:
        assert source is not None
        return await launch(source, nice=profile.nice, started=started)

    look = look._replace(ascii=look.ascii or only_ascii(os.environ))
    app = QtuiApp(source, settings, profile, connect if source else None, look, choice, shelf)

    def give_up() -> None:
        if started is not None:
            started.terminate()

    # Tables of many rows live as long as the session: looking through them for rubbish is in vain.
    gc.set_threshold(20_000, 20, 100)
    end_on_signals(app.leave, give_up, GOODBYE + 1.0)
    app.run()
    if started is not None and (app.life is None or not app.life.said_stop):
        started.terminate()
    return app.return_code or 0
