"""The terminal interface: its screens, its themes, its keys."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from engine import protocol as p
from engine.client import Link, launch, running_engine
from engine.errors import EngineError
from engine.profiles import Profile
from engine.session import Session, running
from engine.store.paths import session_name
from qtui.engine_link import STOP_SECONDS, EngineLink, Leave
from qtui.pump import Pump
from qtui.screens.mounted import MountedScreens
from qtui.screens.session_screen import SessionScreen
from qtui.screens.spec import ScreenContext
from qtui.terminal import TerminalDriver, end_on_signals
from qtui.textual_internals import OneFrameApp, frames_waiting, unbind_key
from qtui.user.commands import Command
from qtui.user.remembered import Remembered, remember_theme
from qtui.user.theme_watch import ThemeShelf
from qtui.user.themes import default_theme, depth
from qtui.views.eventlog import EventLog
from qtui.views.text import PLAIN, UNICODE, Glyphs, only_ascii, printable
from qtui.widgets.prompt.opened import prompt_over

if TYPE_CHECKING:
    from qtui.screens.start.screen import Start

ONLY_LOOKS = "this terminal only looks: it was opened with --read-only"
CONFIRM_SECONDS = 4.0
"""A second ``ctrl+c`` within this many seconds quits."""
CONFIRM_STOP_SECONDS = 10.0
"""A second ``Q`` within this many seconds stops an engine that others use."""
GC_THRESHOLDS = (20_000, 20, 100)
"""`gc.set_threshold`: tables of many rows live as long as the session, with no garbage in them."""


class Appearance(NamedTuple):
    """How the interface is drawn, and its keys."""

    ascii: bool = False
    """Draw with ASCII characters only."""
    theme: str | None = None
    """None chooses one that suits the terminal."""
    remembered: Remembered = Remembered()
    """From an earlier run: whether the pane is shown, how histograms are drawn."""
    keymap: Mapping[str, str] = {}
    """Keys of actions by their ids, where they are not the usual ones."""
    mouse: bool = True
    """Whether the mouse is used; without it the terminal's own selection works."""
    problems: tuple[str, ...] = ()
    """Problems with the user's own files, shown once there is a screen."""
    commands: tuple[Command, ...] = ()
    """The user's own shell commands."""


DEFAULT_APPEARANCE = Appearance()
"""With no options."""


class StartScreen(NamedTuple):
    """The start screen, and what it needs to open a checkpoint."""

    screen: Callable[[Glyphs], Screen[None]]
    """Makes the screen; it posts `Start.Chosen`."""
    resolve: Callable[[str], tuple[p.Settings, Profile]]
    """Settings and profile for the name of a profile."""


class QtuiApp(OneFrameApp):
    """Show a session and send commands, without ever waiting for the engine."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "qtui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", "Quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True),
    ]

    def __init__(
        self,
        source: str | None,
        settings: p.Settings,
        profile: Profile,
        connect: Callable[[], Awaitable[Link]] | None = None,
        appearance: Appearance = DEFAULT_APPEARANCE,
        choice: StartScreen | None = None,
        shelf: ThemeShelf | None = None,
        *,
        asked: bool = True,
        read_only: bool = False,
    ) -> None:
        """
        Args:
            source: ``demo``, a folder, or a hub id; None opens the start screen.
            settings: how everything is measured.
            profile: keys and repaints a second.
            connect: returns a link to an engine; None starts one.
            appearance: how it is drawn.
            choice: the start screen; needed where there is no source.
            shelf: the themes; None reads them.
            asked: whether a person asked for these settings.
            read_only: whether this terminal only looks.
        """
        super().__init__(driver_class=TerminalDriver)
        if self.no_color:
            self.send_no_greys()
        self.animation_level = "none"
        self.appearance, self.choice = appearance, choice
        self.glyphs = PLAIN if appearance.ascii else UNICODE
        self._connect, self._asked, self._read_only = connect, asked, read_only
        self._begun = False
        self._leaving = False
        self.left_working = ""
        """What the engine that was left goes on with; empty if it was not left working."""
        self._code: int | None = None
        """Exit code of a signal that ends the interface."""
        self._interrupted = self._warned = float("-inf")
        """When ``ctrl+c`` was pressed, and when it was said that others use the engine."""
        if "suspend" in appearance.keymap:
            # The user rebound it, and may use this key for another action.
            unbind_key(self, "ctrl+z")
        self.shelf = shelf or ThemeShelf()
        self.shelf.register(self)
        self.theme = appearance.theme or default_theme(os.environ)
        self.engine_link: EngineLink | None = None
        if source is not None:
            self.engine_link = self._link_to(source, settings, profile)

    def _link_to(self, source: str, settings: p.Settings, profile: Profile) -> EngineLink:
        from qtui.views.export_marks import ExportMarks

        context = ScreenContext(
            source, profile, self.glyphs, EventLog(self.glyphs), ExportMarks(),
            self.appearance.keymap, self.shelf.listed, self.appearance.remembered,
            self.appearance.commands,
        )  # fmt: skip
        screens = MountedScreens(self, context)
        connect = self._connect or (
            lambda: launch(
                source, nice=profile.nice, idle=profile.idle_minutes, say=screens.waiting
            )
        )
        return EngineLink(
            self, screens, source, settings, profile, connect, self._is_behind,
            asked=self._asked, read_only=self._read_only,
        )  # fmt: skip

    @property
    def engine(self) -> EngineLink:
        """The link to the engine of the session that is shown.

        Raises:
            RuntimeError: no checkpoint was chosen yet.
        """
        if self.engine_link is None:
            raise RuntimeError("no checkpoint was chosen yet")
        return self.engine_link

    @property
    def screens(self) -> MountedScreens:
        """The screens of the session."""
        return self.engine.screens

    @property
    def pump(self) -> Pump:
        """Folds the engine's events."""
        return self.engine.pump

    @property
    def session(self) -> Session:
        """The state of the session."""
        return self.engine.session

    def get_default_screen(self) -> Screen[object]:
        """The workbench or the start screen: the first frame shows it."""
        if self.engine_link is None:
            assert self.choice is not None, "no source, and no start screen to choose one on"
            return self.choice.screen(self.glyphs)  # type: ignore[return-value]
        return self.screens.workbench  # type: ignore[return-value]

    def on_ready(self) -> None:
        """Paint the first frame once, when every widget is laid out."""
        self.call_after_refresh(self._first_frame)

    def _first_frame(self) -> None:
        self.painting = True
        self.screen.refresh()
        self.call_after_refresh(self._begin)

    def on_mount(self) -> None:
        """Follow changed theme files, and redraw after a suspend."""
        # The shell has drawn over the screen: draw everything again.
        self.app_resume_signal.subscribe(self, lambda _: self.redraw())
        self.set_interval(1.0, self._follow_themes)

    def _follow_themes(self) -> None:
        for problem in self.shelf.poll(self):
            if self.engine_link is not None:
                self.screens.say_and_log("warning", problem)

    def _begin(self) -> None:
        if self.engine_link is not None and not self._begun:
            # A start screen may be left before its own first frame is painted.
            self._begun = True
            self.engine_link.begin()
            for problem in self.appearance.problems:
                self.screens.say_and_log("warning", problem)

    def on_start_chosen(self, chosen: Start.Chosen) -> None:
        """Open what was chosen on the start screen, only once even if enter was pressed twice."""
        from qtui.widgets.prompt.prompt import Prompt, Verdict

        if self.engine_link is not None:
            return
        assert self.choice is not None
        try:
            settings, profile = self.choice.resolve(chosen.profile_name)
        except EngineError as error:
            # The profile file was changed since it was read first.
            self.query_one(Prompt).say(Verdict(False, str(error)), loud=True)
            return
        self._asked = self._asked or chosen.profile_asked
        self.engine_link = self._link_to(chosen.source, settings, profile)
        # Over the start screen, not in its place: Textual cannot remove a first screen.
        self.push_screen(self.screens.workbench)
        self.call_after_refresh(self._begin)

    async def on_start_leave(self) -> None:
        """Quit from the start screen."""
        await self.action_quit()

    def _is_behind(self) -> bool:
        """Whether the terminal has not yet accepted earlier frames."""
        return frames_waiting(self) > 1

    def get_key_display(self, binding: Binding) -> str:
        """Names of keys, without arrows where only ASCII is drawn."""
        shown = super().get_key_display(binding)
        return shown if shown.isascii() or not self.glyphs.ascii else binding.key

    # --- what screens ask for ------------------------------------------------------------------

    def on_session_screen_ask(self, ask: SessionScreen.Ask) -> None:
        """Send the engine a command."""
        if not self.engine.ask(ask.command) and not isinstance(ask.command, p.QUESTIONS):
            only_looks = self.engine.read_only and not self.engine.gone
            self.screens.shown.refused(ONLY_LOOKS if only_looks else "")

    async def on_session_screen_show_screen(self, wanted: SessionScreen.ShowScreen) -> None:
        """Show another screen of the session."""
        await self.screens.switch_to(wanted.id, expecting=wanted.expecting)

    async def on_session_screen_show_layer(self, wanted: SessionScreen.ShowLayer) -> None:
        """Show a layer in the workbench's table."""
        from qtui.screens.workbench.screen import Workbench

        await self.screens.switch_to(None)
        bench = self.screens.workbench
        assert isinstance(bench, Workbench)
        bench.go_to(wanted.layer)

    async def on_session_screen_app_wide_action(self, wanted: SessionScreen.AppWideAction) -> None:
        """Do what only the app can do."""
        link = self.engine
        match wanted.what:
            case "retry":
                self.screens.say("info", link.retry())
            case "quit":
                await self.action_quit()
            case "stop":
                await self._stop()
            case "redraw":
                self.redraw()
            case "suspend":
                self.action_suspend_process()
            case "theme":
                self.choose_theme(wanted.value or self.shelf.next(self.theme))
            case "freeze":
                link.freeze(not link.frozen)
            case "unfreeze":
                link.freeze(False)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Filters of every line: a theme may want the terminal's own colours."""
        return self.shelf.filters(self, super().get_line_filters())

    def choose_theme(self, name: str) -> None:
        """Switch the theme, and remember it for terminals of this colour depth."""
        self.theme = name
        problem = remember_theme(name, depth(os.environ))
        about = dict(self.shelf.listed()).get(name, "")
        self.screens.say("info", f"theme {name}: {about}")
        if problem:
            self.screens.say_and_log("warning", problem)

    async def action_interrupt(self) -> None:
        """Handle ``ctrl+c``: it cancels a prompt, closes an overlay; else, pressed twice, it quits.

        Twice is within `CONFIRM_SECONDS`.
        """
        if (open_prompt := prompt_over(self.screen)) is not None:
            open_prompt.action_cancel()
            return
        if self.screen.is_modal:
            self.screen.dismiss()
            return
        now = time.monotonic()
        if now - self._interrupted < CONFIRM_SECONDS or self.engine_link is None:
            await self.action_quit()
            return
        self._interrupted = now
        said = "press ctrl+c again to quit"
        if jobs := running(self.session):
            what = jobs[0].title if len(jobs) == 1 else f"one of {len(jobs)} jobs"
            said += f"; {self.screens.shown.key('cancel')} cancels {what}"
        self.screens.say("warning", said, CONFIRM_SECONDS)

    async def action_quit(self, how: Leave | None = None) -> None:
        """Quit. While jobs run, the engine goes on with them; else it is stopped.

        Args:
            how: what becomes of the engine, where that was said.
        """
        if self._leaving:
            return
        self._leaving = True
        if self.engine_link is None:
            self.exit(return_code=self._code or 0)
            return
        left = self.engine_link.work()
        how = "detach" if self._read_only else how or ("detach" if left else "stop")
        if how == "detach" and left:
            self.left_working = left[0].title if len(left) == 1 else f"{len(left)} jobs"
        self.screens.say("info", "leaving" if how == "detach" else "stopping the engine")
        self.run_worker(self._shut_down(self.engine_link, how), group="shutdown")

    async def _stop(self) -> None:
        """Stop the engine and quit; if others use it, only when asked again after saying so."""
        if time.monotonic() - self._warned < CONFIRM_STOP_SECONDS:
            await self.action_quit("stop all")
        else:
            self.engine.ask_to_stop(self._may_stop)

    def _may_stop(self, used: str) -> None:
        if not used:
            self.call_later(self.action_quit, "stop all")
            return
        self._warned = time.monotonic()
        key = self.screens.shown.key
        said = f"{used}: {key('stop')} again stops it anyway, {key('quit')} leaves it"
        self.screens.say("warning", said, CONFIRM_STOP_SECONDS)

    def leave(self, code: int) -> None:
        """Quit with this exit code; called by a signal handler."""
        loop = asyncio.get_running_loop()
        self._code = code
        loop.call_soon_threadsafe(lambda: self.call_later(self.action_quit))

    async def _shut_down(self, link: EngineLink, how: Leave) -> None:
        await link.end(how)
        self.exit(return_code=link.open_failed() if self._code is None else self._code)


def run(
    source: str | None,
    settings: p.Settings,
    profile: Profile,
    *,
    appearance: Appearance = DEFAULT_APPEARANCE,
    choice: StartScreen | None = None,
    shelf: ThemeShelf | None = None,
    started: subprocess.Popen[bytes] | None = None,
    asked: bool = True,
    read_only: bool = False,
) -> int:
    """Run the terminal interface until the user quits, and return the exit code.

    ``asked`` says whether a person asked for the settings. ``started`` is the engine that was
    started ahead; it is ended too where the interface ends by a signal or an error, unless it is
    left working. ``read_only`` attaches to a running engine and only looks.
    """

    ahead = [started]

    async def connect() -> Link:
        assert source is not None
        if read_only:
            return await running_engine(source)
        return await launch(
            source, nice=profile.nice, idle=profile.idle_minutes,
            started=ahead.pop() if ahead else None, say=app.screens.waiting,
        )  # fmt: skip

    appearance = appearance._replace(ascii=appearance.ascii or only_ascii(os.environ))
    app = QtuiApp(
        source, settings, profile, connect if source else None, appearance, choice, shelf,
        asked=asked, read_only=read_only,
    )  # fmt: skip

    def give_up() -> None:
        if started is not None and not app.left_working:
            started.terminate()

    gc.set_threshold(*GC_THRESHOLDS)
    end_on_signals(app.leave, give_up, STOP_SECONDS + 1.0)
    app.run(mouse=appearance.mouse)
    if app.left_working:
        name = session_name(app.engine.source)
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write(
                f"qtui: the engine goes on with {printable(app.left_working)}: "
                f"`qtui attach {name}` returns to it, `qtui stop {name}` ends it\n"
            )
            sys.stderr.flush()
    elif started is not None and (app.engine_link is None or not app.engine_link.said_stop):
        started.terminate()
    return app.return_code or 0
