"""The way to an engine: a `Link` over its socket, or `in_process` with no socket at all.

Nothing here imports a tensor library; `in_process` loads the engine by name, when called.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine import protocol as p
from engine.errors import EngineError
from engine.service.server import frame, read_frame
from engine.service.threads import leave_room
from engine.session import Session, apply, decode_session
from engine.store.paths import facts_file, session_folder, session_name, socket_file

START_SECONDS = 30.0
"""How long a started engine may take to open its socket."""

GREET_SECONDS = 10.0
"""How long an engine may take to answer; it does so while it computes."""

STOP_SECONDS = 2.0
"""How long a client that said stop waits for the engine to hang up."""

ENDED_SECONDS = 0.05
"""How long a client that started an engine waits to hear how it ended."""

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_LINES = 12
STARTS = "engine starts"
"""First words of an engine in its log."""
MAX_LOG = 4 << 20

T = TypeVar("T")


class EngineGoneError(EngineError):
    """The engine ended while a client was listening; the message has its last log lines."""


class Link(Protocol):
    """What a screen needs of an engine. A test's engine that replays events has it too."""

    name: str
    """The session's name."""
    log_path: str
    """Path of the engine's log."""

    async def send(self, command: p.AnyCommand) -> None:
        """Hand a command to the engine; returns once it is on its way."""

    async def receive(self) -> p.Sent | Session:
        """The next event, or a whole session that replaces what is known (first, on attaching).

        Raises:
            EngineGoneError: the engine ended.
        """

    async def close(self) -> None:
        """Leave the engine; it is told to stop by `Stop` alone."""


class SocketLink:
    """A `Link` to an engine in a process of its own."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.name = name
        self.log_path = str(log_file(name))
        self.pid = 0
        self.process: subprocess.Popen[bytes] | None = None
        """The engine, where this client started it."""
        self._reader, self._writer = reader, writer
        self._seen = 0
        self._stopping = self._receiving = False
        self._ended = asyncio.Event()

    async def greet(self) -> None:
        """Exchange hellos.

        Raises:
            EngineError: the engine speaks another version.
        """
        self._writer.write(frame(p.Hello()))
        await self._writer.drain()
        hello = await read_frame(self._reader)
        if not isinstance(hello, p.Hello):
            raise EngineGoneError(f"the engine of {self.name} did not answer{_log_tail(self.name)}")
        if hello.wire != p.WIRE_VERSION:
            raise EngineError(
                f"the engine of {self.name} (process {hello.pid}) is of another version of qtui: "
                f"stop it with `kill {hello.pid}` and start again"
            )
        self.pid = hello.pid

    async def send(self, command: p.AnyCommand) -> None:
        """See `Link`."""
        self._stopping = self._stopping or isinstance(command, p.Stop)
        try:
            self._writer.write(frame(command))
            await self._writer.drain()
        except ConnectionError as error:
            raise self._gone() from error

    async def receive(self) -> p.Sent | Session:
        """See `Link`."""
        while True:
            self._receiving = True
            try:
                message = await read_frame(self._reader)
            except ConnectionError as error:
                self._ended.set()
                raise self._gone() from error
            finally:
                self._receiving = False
            match message:
                case None:
                    self._ended.set()
                    raise self._gone()
                case p.Snapshot():
                    self._seen = message.seq
                    return decode_session(message.data)
                case p.Sent():
                    if message.seq and message.seq <= self._seen:
                        continue  # the snapshot had it
                    return message
                case _:
                    continue

    def _gone(self) -> EngineGoneError:
        how = _how_ended(self.process)
        return EngineGoneError(f"the engine of {self.name} {how}{_log_tail(self.name)}")

    async def close(self) -> None:
        """See `Link`."""
        if self._stopping and not self._ended.is_set():
            # To hang up while the engine still writes would lose the word to stop on its way.
            with contextlib.suppress(TimeoutError, ConnectionError, OSError):
                async with asyncio.timeout(STOP_SECONDS):
                    if self._receiving:
                        await self._ended.wait()
                    else:
                        while await self._reader.read(1 << 16):
                            pass
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()


def _how_ended(process: subprocess.Popen[bytes] | None) -> str:
    """What became of an engine, as far as whoever started it can tell."""
    try:
        code = None if process is None else process.wait(ENDED_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    if code is not None and code < 0:
        hint = ": the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"was killed by signal {-code} ({signal.Signals(-code).name}){hint}"
    return f"ended with code {code}" if code else "ended"


def log_file(name: str) -> Path:
    """The log of a session's engine."""
    return session_folder(name) / "engine.log"


def _log_tail(name: str) -> str:
    path = log_file(name)
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    # What an engine before it wrote is another story.
    starts = [at for at, line in enumerate(lines) if STARTS in line]
    lines = lines[starts[-1] if starts else 0 :][-LOG_LINES:]
    return f"; the end of {path}:\n" + "\n".join(lines) if lines else f"; its log is {path}"


async def connect(name: str) -> SocketLink | None:
    """Attach to a session's running engine; None if there is none."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_file(name)))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    link = SocketLink(name, reader, writer)
    try:
        async with asyncio.timeout(GREET_SECONDS):
            await link.greet()
    except TimeoutError as error:
        writer.close()
        holder = (session_folder(name) / "lock").read_text().strip() or "unknown"
        raise EngineGoneError(
            f"the engine of {name} (process {holder}) does not answer: stop that process, "
            "what it measured is kept"
        ) from error
    except ConnectionError as error:
        writer.close()
        raise EngineGoneError(f"the engine of {name} hung up{_log_tail(name)}") from error
    except BaseException:
        writer.close()
        raise
    return link


def start_ahead(source: str, *, nice: int = 10) -> subprocess.Popen[bytes] | None:
    """Start the source's engine for a `launch` to come, unless one seems to be there.

    Its interpreter starts while the caller's imports go on; it loads no library before it is told
    to open something. Where another engine holds the session it ends by itself.
    """
    name = session_name(source)
    return None if socket_file(name).exists() else start_engine(name, nice)


async def launch(
    source: str, *, nice: int = 10, started: subprocess.Popen[bytes] | None = None
) -> SocketLink:
    """Attach to the engine of the source's session; start one first if there is none.

    The engine runs in its own process group, so that neither ``ctrl+c`` nor a hang-up of the
    terminal reaches it.

    Args:
        source: ``demo``, a folder, or a hub id.
        nice: how far a new engine steps back for other processes.
        started: what `start_ahead` gave.

    Raises:
        EngineGoneError: the engine did not start; the message has the end of its log.
    """
    name = session_name(source)
    if (link := await connect(name)) is not None:
        return link
    alive = started is not None and started.poll() is None
    process = started if started is not None and alive else start_engine(name, nice)
    try:
        link = await _reach(name, process)
        link.process = process
        return link
    except BaseException:
        # Nobody will talk to it: not even to tell it to stop.
        process.terminate()
        raise


async def _reach(name: str, process: subprocess.Popen[bytes]) -> SocketLink:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (link := await connect(name)) is not None:
            return link
        if process.poll() is not None:
            # Another one may have come first and hold the session.
            if (link := await connect(name)) is not None:
                return link
            raise EngineGoneError(f"the engine did not start{_log_tail(name)}")
        await asyncio.sleep(0.02)
    raise EngineGoneError(f"the engine did not answer in {START_SECONDS:.0f} s{_log_tail(name)}")


def start_engine(name: str, nice: int) -> subprocess.Popen[bytes]:
    """Start a session's engine in a process group of its own, its output in the session's log."""
    log = log_file(name)
    mode = "wb" if log.exists() and log.stat().st_size > MAX_LOG else "ab"
    with log.open(mode) as output:
        return subprocess.Popen(
            # -P: a folder named engine where the user stands must not be taken for ours.
            [sys.executable, "-P", "-m", "engine", name, "--nice", str(nice)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


class Client(Protocol):
    """An engine as headless runs and tests use it: nothing to await."""

    session: Session
    """The fold of what was received."""

    def send(self, command: p.AnyCommand) -> None:
        """Hand a command to the engine."""

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        """The next event, already folded into ``session``; None if none came in time."""

    def close(self) -> None:
        """Leave. What was measured is kept."""


class InProcess:
    """An engine in this process, driven by the same commands and giving the same events."""

    def __init__(self, name: str) -> None:
        from engine.store.facts import FactStore
        from engine.store.journal import Journal

        facts = FactStore(facts_file())
        try:
            journal = Journal(session_folder(name), facts)
        except BaseException:
            facts.close()
            raise
        self._events: queue.SimpleQueue[tuple[int, p.AnyEvent]] = queue.SimpleQueue()
        leave_room()
        _log_to_file(name)
        # By name, so that importing this module never imports the engine's mathematics.
        dispatch = importlib.import_module("engine.service.engine")
        self.session = journal.fold()
        self._engine: Any = dispatch.Engine(journal, facts, self._take)

    def _take(self, seq: int, event: p.AnyEvent) -> None:
        self._events.put((seq, event))

    def send(self, command: p.AnyCommand) -> None:
        """Hand a command to the engine."""
        self._engine.handle(command)

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        """The next event, already folded into ``session``; None if none came in time."""
        try:
            seq, event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        apply(self.session, event, seq)
        return event

    def close(self) -> None:
        """Stop every job and close the journal; what was measured is kept."""
        self._engine.close()


def _log_to_file(name: str) -> None:
    """An engine in this process writes its log where one of its own process does."""
    logger = logging.getLogger("engine")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(log_file(name), delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger.addHandler(handler)
    logger.propagate = False


def in_process(source: str) -> InProcess:
    """Run an engine for the source's session in this process, with no socket.

    Raises:
        SessionBusyError: another engine holds this session.
    """
    return InProcess(session_name(source))


class Attached:
    """A running engine, with `Client`'s interface: its link, driven from a thread."""

    def __init__(self, link: SocketLink, loop: asyncio.AbstractEventLoop) -> None:
        self.session = Session()
        self._link, self._loop = link, loop
        self._pending: asyncio.Task[p.Sent | Session] | None = None

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def send(self, command: p.AnyCommand) -> None:
        """See `Client`."""
        self._wait(self._link.send(command))

    def receive(self, timeout: float | None = None) -> p.AnyEvent | None:
        """See `Client`.

        Raises:
            EngineGoneError: the engine ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = self._wait(self._next(left))
            if found is None:
                return None
            if isinstance(found, Session):
                self.session = found
                continue
            apply(self.session, found.event, found.seq)
            return found.event

    async def _next(self, timeout: float | None) -> p.Sent | Session | None:
        # A wait that times out must not lose half a frame: the read itself goes on.
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._link.receive())
        done, _ = await asyncio.wait({self._pending}, timeout=timeout)
        if not done:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """See `Client`."""
        if self._pending is not None:
            self._loop.call_soon_threadsafe(self._pending.cancel)
        self._wait(self._link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


def attached(source: str) -> Attached | None:
    """The running engine of the source's session; None if there is none."""
    return _attach(session_name(source))


def _attach(name: str, start: bool = False, source: str = "", nice: int = 10) -> Attached | None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="link", daemon=True).start()
    work = launch(source, nice=nice) if start else connect(name)
    try:
        link = asyncio.run_coroutine_threadsafe(work, loop).result()
    except BaseException:
        loop.call_soon_threadsafe(loop.stop)
        raise
    if link is None:
        loop.call_soon_threadsafe(loop.stop)
        return None
    return Attached(link, loop)


def spawned(source: str, *, nice: int = 10) -> Attached:
    """An engine in a process of its own, started if there is none, with `Client`'s interface."""
    found = _attach(session_name(source), start=True, source=source, nice=nice)
    assert found is not None
    return found
