"""The interface's link to an engine: connect, send commands, fold events, reconnect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from textual.app import App

from engine import protocol as p
from engine.client import EngineGoneError, Link
from engine.errors import EngineError
from engine.profiles import Profile
from engine.session import Dirty, Session, decode_session, encode_session
from qtui.attaching import lacking
from qtui.pump import EVERYTHING, Pump
from qtui.screens.mounted import MountedScreens

GOODBYE = 3.0
"""Seconds to wait until the engine has been told to stop."""


class EngineLink:
    """Connects the screens of a session to an engine, and to the next one where that ends."""

    def __init__(
        self,
        app: App[None],
        screens: MountedScreens,
        source: str,
        settings: p.Settings,
        profile: Profile,
        connect: Callable[[], Awaitable[Link]],
        behind: Callable[[], bool],
    ) -> None:
        """
        Args:
            app: whose timers and workers are used.
            screens: what shows the session.
            source: ``demo``, a folder, or a hub id.
            settings: how everything is measured.
            profile: repaints a second.
            connect: gives a link to an engine.
            behind: whether the terminal still has frames to take.
        """
        self.app, self.screens = app, screens
        self.source, self.settings, self.connect = source, settings, connect
        self.link: Link | None = None
        self.leaving = False
        self.gone = False
        """Whether there is no engine, and none is being started."""
        self.said_stop = False
        self.pump = Pump(
            Session(), self._paint, app.set_timer, profile.fps, hear=self._hear, behind=behind
        )
        # What is heard before the first repaint is logged by what is known then.
        screens.take_session(self.pump.session)
        self._frozen_session: Session | None = None
        self._shown_session = self.pump.session
        """The session that was shown last, or is shown again after the display was frozen."""
        self._commands: asyncio.Queue[p.AnyCommand] = asyncio.Queue()
        self._automatic: set[str] = set()
        """The ``ask`` of every command that nobody pressed a key for."""

    @property
    def session(self) -> Session:
        """What is known."""
        return self.pump.session

    # --- drawing ------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the display is frozen while results are still collected."""
        return self._frozen_session is not None

    def freeze(self, frozen: bool) -> None:
        """Freeze the display on what is known now, or follow again."""
        if frozen != self.frozen:
            self._frozen_session = decode_session(encode_session(self.session)) if frozen else None
            self.screens.freeze(frozen)
            self.pump.mark_dirty(EVERYTHING)

    def _paint(self, dirty: frozenset[Dirty]) -> None:
        if not self.app.is_running or self.leaving:
            return
        if self._frozen_session is None:
            anew, self._shown_session = self.session is not self._shown_session, self.session
            self.screens.paint(self.session, dirty, anew=anew)
        elif dirty == EVERYTHING:
            self.screens.paint(self._frozen_session, dirty)
        elif answers := dirty & {"histogram", "experts"}:
            # What a person asks about a layer is answered while the display is frozen, too.
            self._frozen_session.histograms = self.session.histograms
            self._frozen_session.experts = self.session.experts
            self.screens.paint(self._frozen_session, frozenset(answers))

    # --- the engine ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Look for an engine, and have it open the checkpoint."""
        self.gone = False
        self.screens.connecting()
        self._commands = asyncio.Queue()
        self.pump.mark_dirty(frozenset({"jobs"}))
        self.app.run_worker(self._run(), group="engine", exclusive=True)

    def _lacking(self) -> list[p.Command]:
        """What the session lacks, to be asked for."""
        commands = [
            p.identified(each) for each in lacking(self.session, self.source, self.settings)
        ]
        self._automatic.update(command.ask for command in commands)
        return commands

    def _hear(self, event: p.AnyEvent) -> bool:
        """Pass an event on before it is folded; false where it is not to be folded."""
        if (
            isinstance(event, p.Refused)
            and event.command == "Sweep"
            and event.ask in self._automatic
        ):
            # Another client asked for the same sweep a moment before: nobody pressed a key.
            return False
        return self.screens.hear(event)

    async def _run(self) -> None:
        """Connect, then pass commands on and fold events until the engine ends."""
        self.link = None
        try:
            self.link = link = await self.connect()
            self.screens.connected()
            # The session comes first; what it lacks goes before what a person asked for meanwhile.
            self.pump.take(await link.receive())
            if not self._shown_session.layers.names:
                # What is heard before the first repaint is logged by what is known then.
                self.screens.take_session(self.pump.session)
            for command in self._lacking():
                await self._pass_on(link, command)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(link))
                tasks.create_task(self.pump.read(link))
        except* (EngineError, OSError) as group:
            error = next(_single_errors(group))
            if not self.leaving:
                await self._lost(error)

    async def _send(self, link: Link) -> None:
        while True:
            command = await self._commands.get()
            try:
                await self._pass_on(link, command)
            except (EngineGoneError, OSError):
                # The reader hears of it too, and with the engine's last words.
                await asyncio.Event().wait()
            finally:
                self._commands.task_done()

    async def _pass_on(self, link: Link, command: p.AnyCommand) -> None:
        try:
            await link.send(command)
        except EngineGoneError:
            raise
        except EngineError as error:
            self.screens.say("error", str(error))

    async def _lost(self, error: BaseException) -> None:
        self.gone = True
        log_path = self.link.log_path if self.link is not None else ""
        if self.link is not None:
            with contextlib.suppress(EngineError, OSError):
                await self.link.close()
        self.link = None
        self.freeze(False)
        # What it measured is in the store; to measure all of it anew was asked for only once.
        self.settings = msgspec.structs.replace(self.settings, fresh=False)
        for job in self.session.jobs.values():
            if job.status == "running":
                job.status = "cancelled"
        self.session.stage = None
        said = str(error) or type(error).__name__
        if isinstance(error, OSError):
            said = f"the engine could not be reached: {error.strerror or said}"
        self.screens.lost(said, log_path)
        self.pump.mark_dirty(EVERYTHING)

    def ask(self, command: p.AnyCommand) -> bool:
        """Send a command; false where there is no engine."""
        if not self.gone:
            self._commands.put_nowait(command)
        return not self.gone

    def retry(self) -> str:
        """Start an engine where there is none, or open again; returns what was done, in words."""
        if self.gone:
            self.begin()
            return "restarting the engine"
        if self.open_failed():
            for command in self._lacking():
                self.ask(command)
            return "reopening the checkpoint"
        return "the engine is already running"

    def open_failed(self) -> int:
        """Exit code of the last attempt to open, 0 where it did not fail."""
        opens = [job for job in self.session.jobs.values() if job.kind == "open"]
        return (opens[-1].exit_code or 1) if opens and opens[-1].status == "failed" else 0

    async def end(self) -> None:
        """Tell the engine to stop; this takes `GOODBYE` seconds at most."""
        self.leaving = True
        with contextlib.suppress(EngineError, OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE):
                while self.link is None and not self.gone:
                    await asyncio.sleep(0.02)
                if self.link is not None:
                    await self._commands.join()
                    await self.link.send(p.Stop())
                    self.said_stop = True
                    await self.link.close()


def _single_errors(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _single_errors(error)
        else:
            yield error
