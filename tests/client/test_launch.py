"""Engines that end while someone attaches, and engines of another version."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from subprocess import PIPE

import msgspec
import pytest

from engine import protocol as p
from engine.client import EngineGoneError, OtherVersionError, connect, launch, running_engine
from engine.client.log import log_file
from engine.service.server import Server
from engine.service.wire import frame
from engine.store.lock import SessionBusyError, holder
from engine.store.paths import session_folder, socket_file
from tests.service.test_server import Fake

launching = importlib.import_module("engine.client.launch")


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_an_engine_that_is_ending_is_no_reason_not_to_start_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was killed may accept connections after its clients have lost it."""
    ending = await asyncio.start_unix_server(hang_up, path=str(socket_file("demo")))
    asyncio.get_running_loop().call_later(0.1, ending.close)
    served: list[asyncio.Task[None]] = []
    server = Server(socket_file("demo"), "demo")

    def start(name: str, nice: int, idle: float) -> subprocess.Popen[bytes]:
        from engine.session import Session

        assert not ending.is_serving()
        served.append(asyncio.create_task(server.run(lambda: Fake(Session(seq=3)), 60)))
        return subprocess.Popen(["sleep", "30"])

    monkeypatch.setattr(launching, "start_engine", start)
    link = await launch("demo")
    assert link.process is not None
    link.process.kill()
    await link.close()
    server.stop()
    await served[0]


HOLDS = """
import sys; from pathlib import Path; from engine.store.lock import take
lock = take(Path(sys.argv[1]), 0.0); print("held", flush=True); sys.stdin.read()
"""
"""Holds a lock until its input ends, as a process that is dying does for a while."""


async def test_an_engine_is_started_when_the_process_that_dies_has_let_the_session_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = session_folder("demo") / "lock"
    dying = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)], stdin=PIPE, stdout=PIPE, text=True
    )
    assert dying.stdout is not None
    assert dying.stdout.readline() == "held\n"
    said: list[str] = []

    def start(name: str, nice: int, idle: float) -> subprocess.Popen[bytes]:
        assert said
        assert holder(session_folder("demo")) is None
        raise EngineGoneError("the end of this test")

    def say(sentence: str) -> None:
        said.append(sentence)
        assert dying.stdin is not None
        dying.stdin.close()

    monkeypatch.setattr(launching, "start_engine", start)
    monkeypatch.setattr(launching, "END_SECONDS", 60.0)
    with pytest.raises(EngineGoneError, match="the end of this test"):
        await launch("demo", say=say)
    assert said == [f"process {dying.pid}, which had demo open, is ending: waiting for it"]
    dying.wait()


async def test_an_engine_started_in_advance_is_not_taken_for_one_that_is_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has its session before it has its socket."""
    lock = session_folder("demo") / "lock"
    ahead = subprocess.Popen([sys.executable, "-c", HOLDS, str(lock)], stdin=PIPE, stdout=PIPE)
    assert ahead.stdout is not None
    assert ahead.stdout.readline() == b"held\n"

    async def reach(name: str, process: subprocess.Popen[bytes]) -> None:
        assert process is ahead
        raise EngineGoneError("the end of this test")

    said: list[str] = []
    monkeypatch.setattr(launching, "_reach", reach)
    monkeypatch.setattr(launching, "END_SECONDS", 0.0)
    with pytest.raises(EngineGoneError, match="the end of this test"):
        await launch("demo", started=ahead, say=said.append)
    assert not said
    ahead.communicate()


async def test_an_engine_that_finds_its_session_taken_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process may have it for a moment, between the look and the start."""
    ends = [f"exit({SessionBusyError.exit_code})", "exit(1)"]
    monkeypatch.setattr(
        launching, "start_engine",
        lambda *_: subprocess.Popen([sys.executable, "-c", ends.pop(0)]),
    )  # fmt: skip
    with pytest.raises(EngineGoneError, match="did not start"):
        await launch("demo")
    assert not ends


async def test_only_what_the_engine_started_last_has_said_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_file("demo").write_text("now INFO engine: engine starts: session demo\nold words\n")
    monkeypatch.setattr(launching.sys, "executable", "/bin/false")  # it fails without a word
    with pytest.raises(EngineGoneError, match="did not start") as caught:
        await launch("demo")
    assert [line.split(": ", 1)[1] for line in caught.value.log] == ["engine starts: session demo"]


async def test_an_engine_that_keeps_hanging_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "END_SECONDS", 0.05)
    ending = await asyncio.start_unix_server(hang_up, path=str(socket_file("demo")))
    with pytest.raises(EngineGoneError, match="the engine of demo"):
        await running_engine("demo")
    ending.close()


async def test_an_engine_of_another_version_can_be_stopped() -> None:
    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(p.Hello(wire=p.WIRE_VERSION - 1, session="demo", pid=77)))
        await writer.drain()
        writer.close()

    serving = await asyncio.start_unix_server(older, path=str(socket_file("demo")))
    with pytest.raises(OtherVersionError, match=r"process 77.*`qtui stop demo` ends it") as caught:
        await connect("demo")
    assert caught.value.name == "demo"
    assert caught.value.remedy.startswith("stops it")
    serving.close()


def test_the_first_message_is_the_same_in_every_version() -> None:
    """Else an engine of another version could not say that it is one."""
    said = msgspec.msgpack.decode(p.encode(p.Hello(session="demo", pid=7)))
    assert said.keys() == {"type", "wire", "session", "seen", "pid"}
    later = p.decode_frame(msgspec.msgpack.encode({**said, "wire": 99, "added later": 1}))
    assert isinstance(later, p.Hello)
    assert later.wire == 99
