"""The engine's socket: every client gets a snapshot of the session, then events as they happen.

The loop never waits for a computation or a client. Journalled events are queued for each client
until it reads them; of transient events only the newest of each slot is queued. A stalled
connection costs one queue entry per slot, and misses no result.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from msgspec import UNSET

from engine import protocol as p
from engine.service.wire import MOST_SENT, frame, read_frame

log = logging.getLogger(__name__)

MOST_KEPT = 20_000
"""Journalled events a stalled client may be behind; beyond that it is disconnected and
reattaches."""


FLUSH_SECONDS = 5.0
"""Seconds in which clients are sent what happened last, before the engine hangs up."""


class Engine(Protocol):
    """What the server requires of the engine."""

    def handle(
        self, command: p.AnyCommand, reply: Callable[[p.Refused | p.Notice], None]
    ) -> object:
        """Handle a command, or reply with a refusal; returns quickly."""

    def snapshot(self) -> tuple[int, bytes]:
        """Number of the last journalled event, and the encoded session."""

    def busy(self) -> bool:
        """Whether a job is running or waiting."""


PEER = struct.Struct("3i")
"""Process, user and group at the other end of a socket, as Linux gives them."""


def _same_user(writer: asyncio.StreamWriter) -> bool:
    """Whether the other end is of this user; the folder keeps others out already.

    Where the system does not say (``SO_PEERCRED`` is Linux'), the folder alone has to do.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    peer = writer.get_extra_info("socket")
    if option is None or peer is None:
        return True
    _, user, _ = PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, option, PEER.size))
    return bool(user == os.getuid())


class _Client:
    """One connection's outgoing side."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.results: deque[bytes] = deque()
        self.newest: dict[tuple[object, ...], bytes] = {}
        self.command = ""
        """The command without an interface that it is."""
        self.wake = asyncio.Event()
        self.gone = False

    def give(self, seq: int, event: p.AnyEvent, data: bytes) -> None:
        if self.gone:
            return
        if isinstance(event, p.Transient):
            self.newest[event.slot] = data
        else:
            self.results.append(data)
        if len(self.results) > MOST_KEPT:
            log.warning("a client is %d events behind: disconnecting it", MOST_KEPT)
            self.gone = True
            self.results.clear()
            self.newest.clear()
            transport = self.writer.transport
            assert isinstance(transport, asyncio.WriteTransport)
            transport.abort()
        self.wake.set()

    def is_behind(self) -> bool:
        """Whether a result is still on its way to it."""
        unsent = self.writer.transport.get_write_buffer_size()
        return not self.gone and bool(self.results or unsent)

    async def write(self) -> None:
        """Send what is queued, as fast as the client reads."""
        while not self.gone:
            await self.wake.wait()
            self.wake.clear()
            while self.results or self.newest:
                if self.results:
                    data = self.results.popleft()
                else:
                    data = self.newest.pop(next(iter(self.newest)))
                self.writer.write(data)
                await self.writer.drain()


class Server:
    """Accepts clients on a Unix socket until the last of them asks to stop."""

    def __init__(
        self, path: Path, session: str, stop_run: Callable[[], None] | None = None
    ) -> None:
        """
        Args:
            path: of the socket; only the owner may enter its folder.
            session: name sent to clients.
            stop_run: the engine belongs to a command, which this ends. Without others, a client
                that asks to stop only leaves: the command is another one.
        """
        self.path, self.session, self._stop_run = path, session, stop_run
        self._clients: list[_Client] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._engine: Engine | None = None

    def announce(self, seq: int, event: p.AnyEvent) -> None:
        """Queue an event for every client; from any thread, never blocking."""
        loop = self._loop
        # One that connects meanwhile gets a snapshot, which the engine makes after this event.
        if loop is None or loop.is_closed() or not self._clients:
            return
        data = frame(p.Sent(seq, event))
        loop.call_soon_threadsafe(self._give, seq, event, data)

    def _reply(self, client: _Client) -> Callable[[p.AnyEvent], None]:
        """A function that sends an answer or a warning to one client, from any thread."""

        def reply(answer: p.AnyEvent) -> None:
            loop = self._loop
            if loop is not None and not loop.is_closed():
                data = frame(p.Sent(0, answer))
                loop.call_soon_threadsafe(client.give, 0, answer, data)

        return reply

    def _others(self, asking: _Client) -> p.Clients:
        """Who is attached besides a client."""
        others = [client.command for client in self._clients if client is not asking]
        commands = tuple(sorted(filter(None, others)))
        return p.Clients(terminals=len(others) - len(commands), commands=commands)

    def _give(self, seq: int, event: p.AnyEvent, data: bytes) -> None:
        for client in self._clients:
            client.give(seq, event, data)

    async def run(self, make: Callable[[], Engine], idle_seconds: float) -> None:
        """Listen, then make the engine, and serve until stopped.

        Args:
            make: called once the socket exists, so that clients can connect meanwhile.
            idle_seconds: exit after this long without clients and jobs.
        """
        self._loop = asyncio.get_running_loop()
        self.path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._serve, path=str(self.path))
        finally:
            os.umask(old)
        try:
            self._engine = make()
            await self._until_stopped(idle_seconds)
        finally:
            # Clients first: closing the server waits for its connections.
            self.path.unlink(missing_ok=True)
            await self._flush()
            for client in self._clients:
                client.writer.close()
            server.close()

    async def _flush(self) -> None:
        """Send what is queued to clients that read it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                while any(client.is_behind() for client in self._clients):
                    await asyncio.sleep(0.01)

    async def _until_stopped(self, idle_seconds: float) -> None:
        assert self._engine is not None
        looks, idle = 20, 0
        while idle < looks:
            try:
                await asyncio.wait_for(self._stopped.wait(), idle_seconds / looks)
                return
            except TimeoutError:
                idle = 0 if self._clients or self._engine.busy() else idle + 1
        log.info("no client and no job for %.0f seconds: exiting", idle_seconds)

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._engine is not None
        if not _same_user(writer):
            log.warning("a process of another user connected: it was turned away")
            writer.close()
            return
        client = _Client(writer)
        sending: asyncio.Task[None] | None = None
        try:
            hello = await read_frame(reader, MOST_SENT)
            of_run = UNSET if self._stop_run is None else True
            writer.write(frame(p.Hello(session=self.session, pid=os.getpid(), of_run=of_run)))
            if not isinstance(hello, p.Hello) or hello.wire != p.WIRE_VERSION:
                await writer.drain()
                return
            # Events announced from here on are queued for this client; those already in the
            # snapshot are skipped below by their number.
            client.command = hello.command or ""
            self._clients.append(client)
            engine = self._engine
            seq, data = await asyncio.to_thread(engine.snapshot)
            writer.write(frame(p.Snapshot(seq, data)))
            await writer.drain()
            sending = asyncio.create_task(client.write())
            while (message := await read_frame(reader, MOST_SENT)) is not None:
                if isinstance(message, p.Stop):
                    if self._stop_run is not None:
                        if message.others:
                            self._stop_run()
                    elif len(self._clients) == 1 or message.others:
                        log.info("stopped by a client")  # others are shown the end of the log
                        self.stop()
                    return
                if isinstance(message, p.AskClients):
                    self._reply(client)(self._others(client))
                elif isinstance(message, p.Command):
                    engine.handle(message, self._reply(client))
        except ConnectionError as error:
            log.warning("client: %s", error)
        except asyncio.CancelledError:
            pass  # the server ends; Python 3.11 prints a traceback of a handler that is cancelled
        finally:
            client.gone = True
            if client in self._clients:
                self._clients.remove(client)
            if sending is not None:
                sending.cancel()
            writer.close()
