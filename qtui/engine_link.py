"""The interface's link to an engine: connect, send commands, fold events, reconnect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, TypeAlias

import msgspec
from textual.app import App

from engine import protocol as p
from engine.client import EngineGoneError, Link, OtherVersionError
from engine.client.running import look, stop
from engine.errors import EngineError
from engine.profiles import Profile
from engine.session import (
    Dirty,
    Job,
    Session,
    decode_session,
    encode_session,
    last_job,
    running,
)
from qtui.attaching import lacking
from qtui.pump import EVERYTHING, Pump
from qtui.screens.mounted import MountedScreens
from qtui.textual_internals import call_after, calling_after
from qtui.views.clients import used_by

Leave: TypeAlias = Literal["detach", "stop", "stop all"]
STOP_SECONDS = 3.0
"""Seconds to wait for the stop command to be sent."""


class EngineLink:
    """Connects the screens of a session to an engine, and reconnects when it ends."""

    def __init__(
        self,
        app: App[None],
        screens: MountedScreens,
        source: str,
        settings: p.Settings,
        profile: Profile,
        connect: Callable[[], Awaitable[Link]],
        behind: Callable[[], bool],
        *,
        asked: bool = True,
        read_only: bool = False,
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
            asked: whether a person asked for these settings; where not, those that the session had
                before are used.
            read_only: whether this terminal only looks: it sends nothing but questions.
        """
        self.app, self.screens = app, screens
        self.source, self.settings, self.connect = source, settings, connect
        self.asked, self.read_only = asked, read_only
        self.link: Link | None = None
        self.leaving = False
        self.gone = False
        """Whether there is no engine, and none is being started."""
        self.said_stop = False
        self._other_version = ""
        """The session whose engine is of another version, to be stopped at the next try."""
        self.pump = Pump(
            Session(),
            self._paint,
            calling_after(app),
            profile.fps,
            before_fold=self._before_fold,
            behind=behind,
        )
        # Events before the first repaint are logged against this session.
        screens.take_session(self.pump.session)
        self._frozen_session: Session | None = None
        self._shown_session = self.pump.session
        """The session that was shown last, or is shown again after the display was frozen."""
        self._decide: Callable[[str], None] | None = None
        """Called with the answer to who else uses the engine."""
        self._commands: asyncio.Queue[p.AnyCommand] = asyncio.Queue()
        self._automatic: set[str] = set()
        """The ``ask`` of every command sent without a key press."""

    @property
    def session(self) -> Session:
        """The state of the session."""
        return self.pump.session

    # --- drawing ------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the display is frozen while results are still collected."""
        return self._frozen_session is not None

    def freeze(self, frozen: bool) -> None:
        """Freeze the display, or follow the session again."""
        if frozen != self.frozen:
            self._frozen_session = decode_session(encode_session(self.session)) if frozen else None
            self.screens.freeze(frozen)
            self.pump.mark_dirty(EVERYTHING)

    def _paint(self, dirty: frozenset[Dirty]) -> None:
        if not self.app.is_running or self.leaving:
            return
        if self._frozen_session is None:
            whole, self._shown_session = self.session is not self._shown_session, self.session
            self.screens.paint(self.session, dirty, whole=whole)
        elif dirty == EVERYTHING:
            self.screens.paint(self._frozen_session, dirty)
        elif answers := dirty & {"histogram", "experts", "errors", "ranges"}:
            # Questions about a layer are answered even while the display is frozen.
            self._frozen_session.histograms = self.session.histograms
            self._frozen_session.experts = self.session.experts
            self._frozen_session.errors.maps = self.session.errors.maps
            self._frozen_session.ranges = self.session.ranges
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
        """Commands for what the session lacks; a command's own engine is only watched."""
        if self.read_only or (self.link is not None and self.link.of_run):
            return []
        commands = [
            p.identified(each) for each in lacking(self.session, self.source, self.settings)
        ]
        self._automatic.update(command.ask for command in commands)
        return commands

    def _adopt_settings(self) -> None:
        """Use the settings of the session, where nobody asked for others."""
        session = self.session
        if self.asked or session.source != self.source or not session.versions:
            return
        earlier = msgspec.structs.replace(session.settings, fresh=False)
        if earlier != self.settings:
            self.settings = earlier
            self.screens.say_and_log(
                "info",
                f"settings as before in this session: profile {earlier.profile}, "
                f"{earlier.text or 'default text'}, {earlier.tokens:,} tokens; options change them",
            )

    def _before_fold(self, event: p.AnyEvent) -> bool:
        """Pass an event to the screens before it is folded; false if it must not be folded."""
        if (
            isinstance(event, p.Refused)
            and event.command == "Sweep"
            and event.ask in self._automatic
        ):
            # Another client requested the same sweep a moment earlier; no key was pressed here.
            return False
        if isinstance(event, p.Clients):
            self._answered(used_by(event, of_run=self.link is not None and self.link.of_run))
            return False
        return self.screens.before_fold(event)

    async def _run(self) -> None:
        """Connect, then send commands and fold events until the engine ends."""
        self.link = None
        try:
            await self._stop_other_version()
            self.link = link = await self.connect()
            self.screens.connected()
            # The session comes first; what it lacks is requested before the user's own commands.
            self.pump.take(await link.receive())
            if not self._shown_session.layers.names:
                # Events before the first repaint are logged against this session.
                self.screens.take_session(self.pump.session)
            self._adopt_settings()
            for command in self._lacking():
                await self._pass_on(link, command)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(link))
                tasks.create_task(self.pump.read(link))
        except* (EngineError, OSError) as group:
            error = next(_single_errors(group))
            if not self.leaving:
                await self._lost(error)

    async def _stop_other_version(self) -> None:
        name, self._other_version = self._other_version, ""
        if name and not self.read_only and await asyncio.to_thread(look, name) is not None:
            await asyncio.to_thread(stop, name)

    async def _send(self, link: Link) -> None:
        while True:
            command = await self._commands.get()
            try:
                await self._pass_on(link, command)
            except (EngineGoneError, OSError):
                # The reader fails as well, with the engine's last output.
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
        self._other_version = error.name if isinstance(error, OtherVersionError) else ""
        if self.link is not None:
            with contextlib.suppress(EngineError, OSError):
                await self.link.close()
        self.link = None
        self.freeze(False)
        # Its results are in the store; --fresh applies to the first engine only.
        self.settings = msgspec.structs.replace(self.settings, fresh=False)
        for job in self.session.jobs.values():
            if job.status == "running":
                job.status = "cancelled"
        self.session.stage = None
        self.screens.lost(_as_gone(error))
        self.pump.mark_dirty(EVERYTHING)

    def ask(self, command: p.AnyCommand) -> bool:
        """Send a command; false where there is no engine, or this terminal only looks."""
        if self.read_only and not isinstance(command, p.QUESTIONS):
            return False
        if not self.gone:
            self._commands.put_nowait(command)
        return not self.gone

    def retry(self) -> str:
        """Restart the engine or reopen the checkpoint; return a message saying which."""
        if self.gone:
            self.begin()
            return "restarting the engine"
        opening = last_job(self.session, "open")
        if opening and opening.status in ("failed", "cancelled"):
            for command in self._lacking():
                self.ask(command)
            return "reopening the checkpoint"
        return "the engine is already running"

    def open_failed(self) -> int:
        """Exit code of the last attempt to open, 0 where it did not fail."""
        opening = last_job(self.session, "open")
        return (opening.exit_code or 1) if opening and opening.status == "failed" else 0

    def work(self) -> list[Job]:
        """Jobs that would be lost if the engine stopped now; to open is none."""
        if self.gone or self.link is None:
            return []
        return [job for job in running(self.session) if job.kind not in ("open", "triage")]

    def ask_to_stop(self, decide: Callable[[str], None]) -> None:
        """Ask who else uses the engine.

        Args:
            decide: called once, with a sentence that says who; empty if nobody does.
        """
        if self.gone or self.link is None or self.read_only:
            decide("")
            return
        self._decide = decide
        self.ask(p.AskClients())
        call_after(self.app, STOP_SECONDS, lambda: self._answered("the engine does not answer"))

    def _answered(self, said: str) -> None:
        decide, self._decide = self._decide, None
        if decide is not None:
            decide(said)

    async def end(self, how: Leave) -> None:
        """Leave the engine, or stop it; wait at most `STOP_SECONDS`.

        Args:
            how: ``detach`` leaves it working; ``stop`` stops it unless another terminal is
                attached, ``stop all`` even then.
        """
        self.leaving = True
        detached = how == "detach" or self.read_only
        with contextlib.suppress(EngineError, OSError, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while self.link is None and not self.gone:
                    await asyncio.sleep(0.02)
                if self.link is not None:
                    await self._commands.join()
                    if not detached:
                        await self.link.send(p.Stop(others=how == "stop all"))
                        self.said_stop = True
                    await self.link.close()


def _as_gone(error: BaseException) -> EngineGoneError:
    """Why there is no engine, whatever was raised."""
    if isinstance(error, EngineGoneError):
        return error
    said = str(error) or type(error).__name__
    if isinstance(error, OSError):
        said = f"the engine could not be reached: {error.strerror or said}"
    return EngineGoneError(said)


def _single_errors(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _single_errors(error)
        else:
            yield error
