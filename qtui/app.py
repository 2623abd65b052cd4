"""The terminal interface: one screen over one engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import ClassVar

import msgspec
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from engine import protocol as p
from engine.client import EngineGoneError, Link, launch
from engine.errors import EngineError
from engine.profiles import Profile
from engine.session import Dirty, Session
from qtui.pump import EVERYTHING, Pump
from qtui.screens.workbench import Workbench
from qtui.text import PLAIN, UNICODE, only_ascii
from qtui.themes import DEFAULT_THEME, load_themes

GOODBYE = 3.0
"""Seconds the engine is given to hear that it may stop."""
AGAIN = 2.0
"""Seconds in which a second ``ctrl+c`` quits."""


class QtuiApp(App[None]):
    """Shows a session and passes on what a person wants; never waits for the engine."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "qtui"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", "Quit", id="interrupt", show=False, priority=True),
        Binding(
            "ctrl+z", "suspend_process", "To the shell, fg returns", id="suspend", priority=True
        ),
    ]

    def __init__(
        self,
        source: str,
        settings: p.Settings,
        profile: Profile,
        connect: Callable[[], Awaitable[Link]] | None = None,
        ascii: bool = False,
    ) -> None:
        """
        Args:
            source: ``demo``, a folder, or a hub id.
            settings: how everything is measured.
            profile: keys and repaints a second.
            connect: gives a link to an engine; None starts one.
            ascii: draw with ASCII characters only; ``NO_COLOR`` does the same.
        """
        super().__init__()
        self.source, self.settings, self.profile = source, settings, profile
        self.connect = connect or (lambda: launch(source, nice=profile.nice))
        self.animation_level = "none"
        self.glyphs = PLAIN if ascii or self.no_color else UNICODE
        self.link: Link | None = None
        self.workbench = Workbench(source, profile, self.glyphs)
        self.pump = Pump(
            Session(),
            self._paint,
            self.set_timer,
            profile.fps,
            hear=self.workbench.hear,
            behind=self._behind,
        )
        self._commands: asyncio.Queue[p.AnyCommand] = asyncio.Queue()
        self._leaving = False
        self.said_stop = False
        self._gone = False
        self._interrupted = float("-inf")
        for theme in load_themes().values():
            self.register_theme(theme.theme())
        self.theme = DEFAULT_THEME

    @property
    def session(self) -> Session:
        """What is known."""
        return self.pump.session

    def get_default_screen(self) -> Screen[object]:
        """The workbench is the first screen, and stands in the first frame."""
        return self.workbench  # type: ignore[return-value]

    def on_mount(self) -> None:
        """Look for an engine once the first frame is on the screen."""
        self.call_after_refresh(self._begin)

    def _paint(self, dirty: frozenset[Dirty]) -> None:
        if self.is_running and not self._leaving:
            self.workbench.show(self.session, dirty)

    def _behind(self) -> bool:
        """Whether the terminal still has frames to take."""
        writer = getattr(self._driver, "_writer_thread", None)
        return writer is not None and writer._queue.qsize() > 1

    def get_key_display(self, binding: Binding) -> str:
        """Names of keys, without arrows where only ASCII is drawn."""
        shown = super().get_key_display(binding)
        return shown if shown.isascii() or not self.glyphs.ascii else binding.key

    # --- the engine ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._gone = False
        self.workbench.banner.hide()
        self.workbench.scoreboard.state = "starting the engine"
        self._commands = asyncio.Queue()
        for command in (p.Open(self.source, self.settings), p.Triage(), p.Sweep()):
            self._commands.put_nowait(command)
        self.pump.touch(frozenset({"jobs"}))
        self.run_worker(self._live(), group="engine", exclusive=True)

    async def _live(self) -> None:
        """One engine's life: connect, then pass commands on and fold events until it ends."""
        self.link = None
        try:
            self.link = link = await self.connect()
            self.workbench.scoreboard.state = "opening"
            self.workbench.forget_questions()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(link))
                tasks.create_task(self.pump.read(link))
        except* (EngineError, OSError) as group:
            error = next(_leaves(group))
            if not self._leaving:
                await self._lost(error)

    async def _send(self, link: Link) -> None:
        while True:
            command = await self._commands.get()
            try:
                await link.send(command)
            except (EngineGoneError, OSError):
                # The reader hears of it too, and with the engine's last words.
                await asyncio.Event().wait()
            except EngineError as error:
                self.workbench.message.say("error", str(error))
            finally:
                self._commands.task_done()

    async def _lost(self, error: BaseException) -> None:
        self._gone = True
        log_path = self.link.log_path if self.link is not None else ""
        if self.link is not None:
            with contextlib.suppress(EngineError, OSError):
                await self.link.close()
        self.link = None
        # What it measured is in the store; to measure all of it anew was asked for only once.
        self.settings = msgspec.structs.replace(self.settings, fresh=False)
        for job in self.session.jobs.values():
            if job.status == "running":
                job.status = "cancelled"
        self.session.stage = None
        bench = self.workbench
        bench.scoreboard.state = "no engine"
        bench.table.pending.clear()
        bench.message.clear()
        said = str(error) or type(error).__name__
        if isinstance(error, OSError):
            said = f"the engine could not be reached: {error.strerror or said}"
        bench.banner.show(said, log_path)
        self.pump.touch(EVERYTHING)

    # --- what a person wants ------------------------------------------------------------------

    def on_workbench_ask(self, ask: Workbench.Ask) -> None:
        """Pass a command on."""
        if self._gone:
            if not isinstance(ask.command, p.AskHistogram):
                self.workbench.table.pending.clear()
                self.workbench.table.redraw()
                self.workbench.message.say("warning", "there is no engine: r starts it again")
            return
        self._commands.put_nowait(ask.command)

    def on_workbench_retry(self) -> None:
        """Start an engine where there is none, or open again what could not be opened."""
        if self._gone:
            self.workbench.message.say("info", "starting the engine again")
            self._begin()
        elif self._open_failed():
            self.workbench.message.say("info", "opening again")
            for command in (p.Open(self.source, self.settings), p.Triage(), p.Sweep()):
                self._commands.put_nowait(command)
        else:
            self.workbench.message.say("info", "the engine is running")

    def _open_failed(self) -> int:
        """Exit code of the last attempt to open, 0 where it did not fail."""
        opens = [job for job in self.session.jobs.values() if job.kind == "open"]
        return (opens[-1].exit_code or 1) if opens and opens[-1].status == "failed" else 0

    async def on_workbench_leave(self) -> None:
        """Stop the engine and go."""
        await self.action_quit()

    async def action_interrupt(self) -> None:
        """``ctrl+c``: twice in `AGAIN` seconds quits, so that one stray press ends nothing."""
        now = time.monotonic()
        if now - self._interrupted < AGAIN:
            await self.action_quit()
            return
        self._interrupted = now
        self.workbench.message.say("warning", "ctrl+c again quits; x cancels what is running")

    async def action_quit(self) -> None:
        """Stop the engine and go; `GOODBYE` seconds are the most this takes."""
        if self._leaving:
            return
        self._leaving = True
        self.workbench.message.say("info", "stopping the engine")
        self.run_worker(self._goodbye(), group="goodbye")

    async def _goodbye(self) -> None:
        with contextlib.suppress(EngineError, OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE):
                while self.link is None and not self._gone:
                    await asyncio.sleep(0.02)
                if self.link is not None:
                    await self._commands.join()
                    await self.link.send(p.Stop())
                    self.said_stop = True
                    await self.link.close()
        self.exit(return_code=self._open_failed())


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def run(
    source: str,
    settings: p.Settings,
    profile: Profile,
    *,
    ascii: bool = False,
    started: subprocess.Popen[bytes] | None = None,
) -> int:
    """Run the terminal interface until a person leaves it, and return the exit code.

    ``started`` is the engine that was started ahead. Whoever leaves by another way than quitting
    (a signal, an error) takes it along.
    """

    async def connect() -> Link:
        return await launch(source, nice=profile.nice, started=started)

    app = QtuiApp(source, settings, profile, connect, ascii=ascii or only_ascii(os.environ))
    app.run()
    if started is not None and not app.said_stop:
        started.terminate()
    return app.return_code or 0
