"""A `Link` to an engine in another process: messages over its socket."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import msgspec

from engine import protocol as p
from engine.client.log import log_file, log_tail
from engine.errors import EngineError
from engine.service.wire import frame, read_frame
from engine.session import Session, decode_session
from engine.store.paths import SocketFolderError, session_folder, socket_file

GREET_SECONDS = 30.0
"""Seconds an engine may take to answer. It answers while it computes, but a machine with ten times
as much to do as it has cores takes ten seconds for one."""

STOP_SECONDS = 2.0
"""Seconds a client that sent `Stop` waits for the engine to close the connection."""

ENDED_SECONDS = 0.05
"""Seconds a client that started an engine waits for its exit code."""


class EngineGoneError(EngineError):
    """The engine exited while a client was attached; the message has the last lines of its log."""

    remedy: ClassVar[str] = "restarts it and resumes"
    """What the interface's key for another try does."""

    def __init__(self, reason: str, log: Sequence[str] = (), log_path: str = "") -> None:
        """
        Args:
            reason: what happened, in a sentence.
            log: the last lines of the engine's log.
            log_path: where the log is.
        """
        self.reason, self.log, self.log_path = reason, tuple(log), log_path
        where = f"; the end of {log_path}:\n" if log else f"; its log is {log_path}"
        super().__init__(reason + (where if log_path else "") + "\n".join(log))

    @classmethod
    def of(cls, name: str, reason: str) -> Self:
        """What happened to the engine of a session, with the end of its log."""
        path = log_file(name)
        return cls(reason, log_tail(name), str(path) if path.exists() else "")


class OtherVersionError(EngineGoneError):
    """The engine was started by another version of qtui: it can only be stopped."""

    remedy = "stops it and starts one of this version"

    def __init__(self, name: str, pid: int) -> None:
        """
        Args:
            name: of the session.
            pid: the engine's process.
        """
        self.name = name
        super().__init__(
            f"the engine of {name} (process {pid}) runs another version of qtui: "
            f"`qtui stop {name}` ends it, results are saved"
        )


class RunEndedError(EngineGoneError):
    """The engine belonged to a command without an interface, which has ended."""

    remedy = "starts an engine and resumes"


class EngineEndingError(EngineGoneError):
    """The engine hung up on a new client: it is just ending."""


class Link(Protocol):
    """What a screen needs of an engine; in tests, a replayer of events implements it too."""

    name: str
    """The session's name."""
    log_path: str
    """Path of the engine's log."""
    of_run: bool
    """Whether the engine belongs to a command without an interface, and ends with it."""

    async def send(self, command: p.AnyCommand) -> None:
        """Send a command; returns once it is written."""

    async def receive(self) -> p.Sent | Session:
        """The next event, or a whole session that replaces the known one (first, on attaching).

        Raises:
            EngineGoneError: the engine exited.
        """

    async def close(self) -> None:
        """Detach; only `Stop` stops the engine."""


class SocketLink:
    """A `Link` to an engine in its own process."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.name = name
        self.log_path = str(log_file(name))
        self.pid = 0
        self.of_run = False
        self.process: subprocess.Popen[bytes] | None = None
        """The engine process, if this client started it."""
        self._reader, self._writer = reader, writer
        self._seen = 0
        self._stopping = self._receiving = self._closing = False
        self._ended = asyncio.Event()

    async def greet(self, command: str = "") -> None:
        """Exchange hellos.

        Args:
            command: see `connect`.

        Raises:
            EngineEndingError: it hung up.
            OtherVersionError: it has another wire version.
        """
        self._writer.write(frame(p.Hello(command=command or msgspec.UNSET)))
        await self._writer.drain()
        hello = await read_frame(self._reader)
        if not isinstance(hello, p.Hello):
            raise EngineEndingError.of(self.name, f"the engine of {self.name} did not answer")
        if hello.wire != p.WIRE_VERSION:
            raise OtherVersionError(self.name, hello.pid)
        self.pid, self.of_run = hello.pid, hello.of_run is True

    async def send(self, command: p.AnyCommand) -> None:
        """See `Link`."""
        self._stopping = self._stopping or isinstance(command, p.Stop)
        try:
            self._writer.write(frame(p.identified(command)))
            await self._writer.drain()
        except ConnectionError as error:
            raise self._gone() from error

    async def receive(self) -> p.Sent | Session:
        """See `Link`."""
        while True:
            if self._closing:  # whatever still comes is read, and dropped, there
                raise EngineGoneError.of(self.name, f"the engine of {self.name} was left")
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
                        continue  # already in the snapshot
                    return message
                case _:
                    continue

    def _gone(self) -> EngineGoneError:
        if self.of_run:
            return RunEndedError(f"the command that had {self.name} open has ended")
        how = _how_ended(self.process)
        return EngineGoneError.of(self.name, f"the engine of {self.name} {how}")

    async def close(self) -> None:
        """See `Link`."""
        if self._stopping and not self._ended.is_set():
            # Closing while the engine still writes would lose the `Stop` on its way.
            with contextlib.suppress(TimeoutError, ConnectionError, OSError):
                async with asyncio.timeout(STOP_SECONDS):
                    if self._receiving:
                        await self._ended.wait()
                    else:
                        self._closing = True
                        while await self._reader.read(1 << 16):
                            pass
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()


def _how_ended(process: subprocess.Popen[bytes] | None) -> str:
    """How an engine process ended, if this client can know."""
    try:
        code = None if process is None else process.wait(ENDED_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    if code is not None and code < 0:
        hint = ": the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"was killed by signal {-code} ({signal.Signals(-code).name}){hint}"
    return f"ended with code {code}" if code else "ended"


async def connect(name: str, command: str = "") -> SocketLink | None:
    """Attach to a session's running engine; None if there is none.

    Args:
        name: of the session.
        command: the command without an interface that attaches; empty for a terminal.

    Raises:
        EngineEndingError: it is just ending.
        EngineGoneError: it does not answer.
        OtherVersionError: it was started by another version of qtui.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_file(name)))
    except (FileNotFoundError, ConnectionRefusedError, SocketFolderError):
        return None
    link = SocketLink(name, reader, writer)
    try:
        async with asyncio.timeout(GREET_SECONDS):
            await link.greet(command)
    except TimeoutError as error:
        writer.close()
        holder = (session_folder(name) / "lock").read_text().strip() or "unknown"
        raise EngineGoneError(
            f"the engine of {name} (process {holder}) does not answer: stop that process, "
            "results are saved"
        ) from error
    except ConnectionError as error:
        writer.close()
        raise EngineEndingError.of(name, f"the engine of {name} hung up") from error
    except BaseException:
        writer.close()
        raise
    return link
