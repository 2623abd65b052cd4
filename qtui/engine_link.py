"""One engine's life as the interface lives it: reached, told what is wanted, heard to its end."""

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
from qtui.pump import EVERYTHING, Pump
from qtui.screens.workbench.screen import Workbench

GOODBYE = 3.0
"""Seconds the engine is given to hear that it may stop."""


class Life:
    """Connects a workbench to an engine, and to the next one where that ends."""

    def __init__(
        self,
        app: App[None],
        bench: Workbench,
        source: str,
        settings: p.Settings,
        profile: Profile,
        connect: Callable[[], Awaitable[Link]],
        behind: Callable[[], bool],
    ) -> None:
        """
        Args:
            app: whose timers and workers are used.
            bench: the screen that shows what is known.
            source: ``demo``, a folder, or a hub id.
            settings: how everything is measured.
            profile: repaints a second.
            connect: gives a link to an engine.
            behind: whether the terminal still has frames to take.
        """
        self.app, self.bench = app, bench
        self.source, self.settings, self.connect = source, settings, connect
        self.link: Link | None = None
        self.leaving = False
        self.gone = False
        """Whether there is no engine, and none is being looked for."""
        self.said_stop = False
        self.pump = Pump(
            Session(), self._paint, app.set_timer, profile.fps, hear=bench.hear, behind=behind
        )
        # What is heard before the first repaint is logged by what is known then.
        bench.session = self.pump.session
        self._still: Session | None = None
        self._taken = self.pump.session
        """The session that was shown last, or is shown again after a pause."""
        self._commands: asyncio.Queue[p.AnyCommand] = asyncio.Queue()

    @property
    def session(self) -> Session:
        """What is known."""
        return self.pump.session

    # --- drawing ------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the screen stands still while results go on being collected."""
        return self._still is not None

    def freeze(self, frozen: bool) -> None:
        """Let the screen stand still on what is known now, or follow again."""
        if frozen != self.frozen:
            self._still = decode_session(encode_session(self.session)) if frozen else None
            self.bench.scoreboard.frozen = frozen
            self.pump.touch(EVERYTHING)

    def _paint(self, dirty: frozenset[Dirty]) -> None:
        if not self.app.is_running or self.leaving:
            return
        if self._still is None:
            anew, self._taken = self.session is not self._taken, self.session
            self.bench.show(self.session, dirty, anew=anew)
        elif dirty == EVERYTHING:
            self.bench.show(self._still, dirty)
        elif answers := dirty & {"histogram", "experts"}:
            # What a person looks at is answered also while results stand still.
            self._still.histograms = self.session.histograms
            self._still.experts = self.session.experts
            self.bench.show(self._still, frozenset(answers))

    # --- the engine ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Look for an engine, and have it open the checkpoint."""
        self.gone = False
        self.bench.found()
        self._commands = asyncio.Queue()
        self._ask_for_all()
        self.pump.touch(frozenset({"jobs"}))
        self.app.run_worker(self._live(), group="engine", exclusive=True)

    def _ask_for_all(self) -> None:
        for command in (p.Open(self.source, self.settings), p.Triage(), p.Sweep()):
            self._commands.put_nowait(command)

    async def _live(self) -> None:
        """Connect, then pass commands on and fold events until the engine ends."""
        self.link = None
        try:
            self.link = link = await self.connect()
            self.bench.connected()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(link))
                tasks.create_task(self.pump.read(link))
        except* (EngineError, OSError) as group:
            error = next(_leaves(group))
            if not self.leaving:
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
                self.bench.message.say("error", str(error))
            finally:
                self._commands.task_done()

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
        self.bench.lost(said, log_path)
        self.pump.touch(EVERYTHING)

    def ask(self, command: p.AnyCommand) -> bool:
        """Pass a command on; false where there is no engine to take it."""
        if not self.gone:
            self._commands.put_nowait(command)
        return not self.gone

    def retry(self) -> str:
        """Start an engine where there is none, or open again; returns what was done in words."""
        if self.gone:
            self.begin()
            return "starting the engine again"
        if self.open_failed():
            self._ask_for_all()
            return "opening again"
        return "the engine is running"

    def open_failed(self) -> int:
        """Exit code of the last attempt to open, 0 where it did not fail."""
        opens = [job for job in self.session.jobs.values() if job.kind == "open"]
        return (opens[-1].exit_code or 1) if opens and opens[-1].status == "failed" else 0

    async def end(self) -> None:
        """Tell the engine that it may stop; `GOODBYE` seconds are the most this takes."""
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


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
