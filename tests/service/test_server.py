"""The socket: a snapshot, then every event in order; a stalled client harms nobody."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine import protocol as p
from engine.client import EngineGoneError, SocketLink, connect, link
from engine.service.server import Server
from engine.service.wire import frame, read_frame
from engine.session import Session, encode_session
from engine.store.paths import socket_file

PATIENCE = 20.0


class Fake:
    """An engine of which the server needs no more."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.handled: list[p.AnyCommand] = []

    def handle(self, command: p.AnyCommand, reply: Callable[[p.Refused], None]) -> None:
        self.handled.append(msgspec.structs.replace(command, ask=""))
        if isinstance(command, p.Cancel):
            reply(p.Refused("Cancel", "there is none", ask=command.ask))

    def snapshot(self) -> tuple[int, bytes]:
        return self.session.seq, encode_session(self.session)

    def busy(self) -> bool:
        return False


@asynccontextmanager
async def serving(session: Session | None = None) -> AsyncIterator[tuple[Server, Fake]]:
    engine = Fake(session or Session())
    server = Server(socket_file("test"), "test")
    running = asyncio.create_task(server.run(lambda: engine, idle_seconds=60))
    async with asyncio.timeout(PATIENCE):
        while not server.path.exists():
            await asyncio.sleep(0)
    try:
        yield server, engine
    finally:
        server.stop()
        await running


async def attach() -> SocketLink:
    link = await connect("test")
    assert link is not None
    return link


async def events(link: SocketLink, stop: Callable[[p.AnyEvent], bool]) -> list[p.Sent]:
    seen: list[p.Sent] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            message = await link.receive()
            if isinstance(message, p.Sent):
                seen.append(message)
                if stop(message.event):
                    return seen


async def test_a_client_gets_the_session_first_and_then_what_follows() -> None:
    async with serving(Session(source="demo", seq=7)) as (server, _):
        link = await attach()
        first = await link.receive()
        assert isinstance(first, Session)
        assert (first.source, first.seq) == ("demo", 7)
        server.announce(7, p.Notice("info", "the snapshot has it"))
        server.announce(8, p.Notice("info", "new"))
        (sent,) = await events(link, lambda event: True)
        assert (sent.seq, sent.event) == (8, p.Notice("info", "new"))
        await link.close()


async def test_commands_reach_the_engine_in_order() -> None:
    async with serving() as (_, engine):
        link = await attach()
        await link.receive()
        for command in (p.Triage(), p.Sweep(("int8",)), p.Undo()):
            await link.send(command)
        async with asyncio.timeout(PATIENCE):
            while len(engine.handled) < 3:
                await asyncio.sleep(0)
        assert engine.handled == [p.Triage(), p.Sweep(("int8",)), p.Undo()]
        await link.close()


async def test_a_client_is_told_who_else_is_attached() -> None:
    async with serving() as (_, engine):
        asking, *others = [
            link
            for command in ("", "", "qtui eval", "qtui eval")
            if (link := await connect("test", command)) is not None
        ]
        for each in (asking, *others):
            await each.receive()
        await asking.send(p.AskClients())
        (sent,) = await events(asking, lambda event: True)
        assert sent.event == p.Clients(terminals=1, commands=("qtui eval", "qtui eval"))
        for each in others:
            await each.close()
        alone: list[p.AnyEvent] = []
        while p.Clients() not in alone:  # the server notices a moment later that they have left
            await asking.send(p.AskClients())
            alone += [each.event for each in await events(asking, lambda event: True)]
        assert not engine.handled
        await asking.close()


async def test_a_refusal_reaches_only_the_client_that_asked() -> None:
    async with serving() as (server, _):
        asking, other = await attach(), await attach()
        await asking.receive()
        await other.receive()
        await asking.send(p.Cancel("9", ask="mine"))
        (sent,) = await events(asking, lambda event: True)
        assert sent.event == p.Refused("Cancel", "there is none", ask="mine")
        server.announce(1, p.Notice("info", "for all"))
        (sent,) = await events(other, lambda event: True)
        assert sent.event == p.Notice("info", "for all")
        await asking.close()
        await other.close()


async def test_a_stalled_client_misses_no_result_and_gets_the_newest_progress() -> None:
    """One client reads nothing while thousands of events pass; another is not held up."""
    async with serving() as (server, _):
        stalled, lively = await attach(), await attach()
        await stalled.receive()
        await lively.receive()
        padding = "x" * 2000  # more than the socket's buffers hold
        for number in range(1, 1001):
            server.announce(number, p.Notice("info", f"{number} {padding}"))
            server.announce(0, p.Progress(job="sweep", done=number, total=1000))

        def last(event: p.AnyEvent) -> bool:
            return isinstance(event, p.Progress) and event.done == 1000

        quick = await events(lively, last)
        assert [s.seq for s in quick if s.seq] == list(range(1, 1001))
        late = await events(stalled, last)
        assert [s.seq for s in late if s.seq] == list(range(1, 1001))
        assert sum(isinstance(s.event, p.Progress) for s in late) < 1000
        await stalled.close()
        await lively.close()


async def test_fifty_thousand_rows_pass_in_frames_that_are_not_too_long() -> None:
    names = [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(50_000)]
    listed = p.LayersListed(
        names=names,
        kinds=["gate_up_proj"] * len(names),
        blocks=list(range(len(names))),
        roles=["experts"] * len(names),
        shapes=[(8, 64, 64)] * len(names),
        dtypes=["bfloat16"] * len(names),
        other_bytes=0,
    )
    data = frame(p.Sent(1, listed))
    assert len(data) > p.MAX_FRAME
    reader = asyncio.StreamReader(limit=len(data))
    reader.feed_data(data)
    reader.feed_eof()
    assert await read_frame(reader) == p.Sent(1, listed)
    assert await read_frame(reader) is None
    async with serving() as (server, _):
        link = await attach()
        await link.receive()
        server.announce(1, listed)
        (sent,) = await events(link, lambda event: True)
        assert sent.event == listed
        await link.close()


async def test_a_change_of_fifty_thousand_layers_reaches_the_engine_whole() -> None:
    layers = tuple(f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(50_000))
    command = p.SetFormat(layers, "int4-g128")
    assert len(p.encode(command)) > p.MAX_FRAME
    async with serving() as (_, engine):
        link = await attach()
        await link.receive()
        await link.send(command)
        await link.send(p.Undo())
        async with asyncio.timeout(PATIENCE):
            while len(engine.handled) < 2:
                await asyncio.sleep(0)
        assert engine.handled == [command, p.Undo()]
        await link.close()


async def test_stop_ends_the_engine_only_for_the_last_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with serving() as (server, _):
        one, two = await attach(), await attach()
        await one.receive()
        await two.receive()
        await one.send(p.Stop())
        with pytest.raises(EngineGoneError):
            async with asyncio.timeout(PATIENCE):
                await one.receive()
        server.announce(1, p.Notice("info", "still here"))
        await events(two, lambda event: True)
        await two.send(p.Stop())
        with pytest.raises(EngineGoneError):
            async with asyncio.timeout(PATIENCE):
                await two.receive()
        assert "stopped by a client" in caplog.text
        assert not server.path.exists() or server._stopped.is_set()
        await one.close()
        await two.close()


def test_who_is_attached_when_a_run_ends_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        server = Server(socket_file("test"), "test")

        async def look() -> None:
            while not server.path.exists():
                await asyncio.sleep(0)
            link = await attach()
            assert isinstance(await link.receive(), Session)
            server.stop()
            await link.receive()

        looking = asyncio.create_task(look())
        await server.run(lambda: Fake(Session()), idle_seconds=60)
        assert not looking.done()

    asyncio.run(run())
    assert [each.getMessage() for each in caplog.records if each.name == "asyncio"] == []


async def test_stop_is_heard_from_a_client_that_reads_nothing_and_hangs_up_at_once() -> None:
    async with serving() as (server, _):
        link = await attach()
        padding = "x" * 2000
        for number in range(1, 2001):
            server.announce(number, p.Notice("info", f"{number} {padding}"))
        await link.send(p.Stop())
        await link.close()
        async with asyncio.timeout(PATIENCE):
            await server._stopped.wait()


async def test_who_leaves_is_told_so_if_another_part_of_it_begins_to_read() -> None:
    async with serving():
        link = await attach()
        await link.receive()
        await link.send(p.Stop())
        closing = asyncio.create_task(link.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineGoneError, match="was left"):
            await link.receive()
        await closing


async def test_what_is_no_frame_ends_that_connection_alone() -> None:
    async with serving() as (server, _):
        good = await attach()
        await good.receive()
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\4abcd", b"\xff" * 64):
            reader, writer = await asyncio.open_unix_connection(str(server.path))
            writer.write(rubbish)
            writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                await reader.read()
            writer.close()
        server.announce(1, p.Notice("info", "still here"))
        await events(good, lambda event: True)
        await good.close()


async def test_nobody_else_may_enter_the_socket() -> None:
    async with serving() as (server, _):
        assert stat.S_IMODE(os.stat(server.path).st_mode) & 0o077 == 0
        assert stat.S_IMODE(os.stat(server.path.parent).st_mode) == 0o700


async def test_there_is_no_engine_to_attach_to(tmp_path: Path) -> None:
    assert await connect("nobody") is None
    socket_file("stale").touch()
    assert await connect("stale") is None


def test_a_client_says_how_the_engine_it_started_ended() -> None:
    assert link._how_ended(None) == "ended"
    with subprocess.Popen(["sleep", "30"]) as process:
        process.kill()
        assert "was killed by signal 9 (SIGKILL)" in link._how_ended(process)
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(4)"]) as process:
        process.wait(PATIENCE)
        assert link._how_ended(process) == "ended with code 4"


def test_what_a_transient_event_replaces_is_said_beside_it() -> None:
    for kind in p.Transient.__subclasses__():
        assert set(kind.replaces) <= set(kind.__struct_fields__), kind
    first = p.Progress(job="1", done=1, total=9)
    assert first.slot == p.Progress(job="1", done=2, total=9).slot
    assert first.slot != p.Progress(job="2", done=1, total=9).slot
    assert p.Stage("a", 0, 1).slot == p.Stage("b", 0, 1).slot
    assert p.Refused("Undo", "no").slot != p.Refused("Redo", "no").slot
